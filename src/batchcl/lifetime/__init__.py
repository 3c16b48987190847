"""The model around a run: its life cycle as a state machine, the lease in its tags, the reaper, the scheduled stop."""
