"""Sample counts of a build, each an upper limit."""

#: Training inputs that calibrate the ranges of an integer file.
CALIBRATED = 200
#: Training inputs for a file of which only size and latency count: its ranges change neither.
TIMED = 8
#: Validation inputs for the parity check of a file.
CHECKED = 64
#: Validation samples that a plan is scored on, and training samples for its reconstruction before.
JUDGED = 2_000
FITTED = 500
#: Test samples that the stages between the original and its file are scored on.
STAGED = 2_000
