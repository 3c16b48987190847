"""The command line: one file a command. It assembles and shows, and holds no logic."""
