"""The passes: one file each, imported when the registry is asked for one."""
