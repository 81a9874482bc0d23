"""The command line: arguments, help, and what each verb does."""
