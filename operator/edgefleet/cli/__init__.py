"""Commands for people. Each prints a table that fits a terminal, or JSON with `-o json`, and documents its exit codes."""
