"""What each command does and prints; `scalebench.cli` registers them."""
