"""From a spec and facts to the numbers of one attempt. Pure arithmetic, one question per file."""
