"""TensorFlow Lite Micro, the runtime of microcontrollers, on this machine."""
