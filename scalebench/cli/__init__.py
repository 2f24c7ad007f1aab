"""The command line: `app` has every signature, `commands` what each does, `output` how it prints."""
