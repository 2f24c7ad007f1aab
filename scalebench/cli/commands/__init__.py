"""What each command does and prints; `scalebench.cli.app` registers them."""
