"""Text in and text out: tokeniser, incremental detokeniser with stop strings, chat templates."""
