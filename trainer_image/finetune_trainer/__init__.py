"""The trainer image's program: a gang of pods fine-tunes one model, checkpoints, evaluates and publishes."""
