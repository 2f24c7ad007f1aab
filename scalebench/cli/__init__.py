"""The command line: `entry` begins it, `app` has every signature, `commands` what each does, `output` how it prints."""

INTERRUPTED = 3  # the exit code: the same command continues
STDERR = 2  # the descriptor of standard error
