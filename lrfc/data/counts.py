"""How many samples a build takes for each of its uses, where the data have as many."""

#: Training inputs that the ranges of a file of integers are calibrated on.
CALIBRATED = 200
#: Training inputs of a file of which only size and time count: its ranges change neither.
TIMED = 8
#: Validation inputs of the parity check of a file.
CHECKED = 64
#: Validation samples that a plan is judged on, and training samples that it is repaired on before.
JUDGED = 2_000
FITTED = 500
