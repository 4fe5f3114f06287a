"""What each command of the command line does: its flags as a frozen dataclass, and a function that runs it.

Every function takes the arguments behind the command's name and returns an exit code. Heavy imports stay inside them,
so that --help and wrong flags answer at once.
"""
