"""The commands of ``lorkd``, one file each; torch is imported when a command runs, so that ``--help`` is quick."""
