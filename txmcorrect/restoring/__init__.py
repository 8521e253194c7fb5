"""Parts of `restore`: prior, tasks, pictures."""
