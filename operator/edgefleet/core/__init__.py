"""What to do: pure decisions. No clock, no network, no randomness; `now` is an argument and draws are hashes of names."""
