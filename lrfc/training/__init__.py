"""What a training run is made of, one idea a file: losses, feature maps, augmentation, weight decay, the learning rate, checkpoints, steps."""
