"""What people said about answers: any public file becomes records.

load          a source, whatever it is, to Feedback: problems put aside, records that share a prompt merged
sources       files, folders, the Hub or memory to numbered rows
layouts       the table of layouts; which one a file has; columns renamed, left out, or suspicious
readers       one function per layout: a FeedbackLine to records
messages      JSON, text, chat messages and tool calls of a row, checked
labels        thumbs in one vocabulary per file
records       Record, Completion, Pair, Example, and the views that losses read
prompts       prompts as one tree: which are equal, and which begin others
"""
