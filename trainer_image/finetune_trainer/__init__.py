"""The trainer image's program: one gang of pods fine-tunes one model, checkpoints, evaluates and publishes."""
