"""What knows no BERT and no LoRA, and what any such program needs. Nobody has to read it first.

    errors     InputError, the reading of a user's file, a program's main: errors in one line
    files      files that are written whole or not at all, JSON, locks
    options    a dataclass becomes flags and a TOML file
    hub        a name becomes a folder: a directory, or the Hugging Face Hub; login, upload
    offline    the pair that `make train` takes where the Hub is out of reach
    parallel   several processes that work as one, as torchrun starts them
    glue       GLUE's tasks: columns, class names, metrics
    metrics    accuracy, F1, correlations
    tasks      one class, several labels or a number for a text: loss, answers, scores
    dataset    which rows are trained and validated on, with which labels
    tables     parquet, csv, tsv, jsonl: the columns, the texts and labels in them
    dialects   the separators and quotes of csv and tsv
    encodings  UTF-8, UTF-16, and the name of what is neither
    splits     training and validation: by files, by a column, or held out
    labels     numbering labels
    visible    which texts show nothing
    pieces     a table of any size in pieces, and files of answers
    excerpts   the beginnings of long texts that decide their tokens
    wordpiece  the tokenizer that a BERT brings

Nothing here imports one of the five files or runtime/.
"""
