"""Finding transforms: core types in, core types out. No paths, no config."""
