"""Training: steps and their loop, losses, augmentation, decay, learning rate, checkpoints."""
