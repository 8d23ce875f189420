"""Arm Ethos-U NPUs through the Vela compiler."""
