"""What people said about answers: any public file becomes records.

load          a source, whatever it is, to Feedback: problems put aside, records that share a prompt merged
sources       files, folders, zips, the Hub or memory to numbered rows
tables        CSV, Parquet and what lies in memory as rows
layouts       the table of layouts; which one a file has; columns renamed, left out, or suspicious
readers       one function per layout: a FeedbackLine to records
imports       exports of chat apps and raw public data sets, which need more than a change of names
columns       what the user says of columns: --map with paths, --labels
meanings      what columns of unknown names probably hold
messages      JSON, text, chat messages, tool calls and thumbs of a row, checked; one vocabulary of thumbs per file
records       Record, Completion, Pair, Example; the views that losses read; prompts as one tree
"""
