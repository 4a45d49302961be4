"""The API as frozen pydantic models: the single source of ``crds/`` and of what the operator parses."""
