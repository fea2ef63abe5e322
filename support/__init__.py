"""The appendix to the five files: what any such program needs, and what has nothing to do with BERT or LoRA.

    files          whole files: JSON, safetensors; InputError, and knowing an error for want of memory
    hub            a file in a directory or on the Hugging Face Hub; login, upload
    base_files     config.json and the tokenizer of a base model, checked
    adapter_files  an adapter's files in PEFT's format
    faster         the same results sooner on a CPU: cheaper draws for dropout, hand-written gradients for LoRA
    tables         parquet, csv, tsv, jsonl; numbering labels; holding out
    texts          texts to classify: from the command line, a file, standard input
    labelling      a whole table labelled in pieces, which a kill or several processes do not trouble
    glue           GLUE's tasks: columns, class names, metrics
    options        a dataclass as flags and as a TOML file
    console        what is printed, one-line errors, signals, the progress bar and the log
    distributed    several processes that work as one, as torchrun starts them
    devices        cuda, mps or cpu; bfloat16, torch.compile
    run_folder     what --out may replace; one run at a time
    progress       where a run stands, what it has measured, and advice where it can go no further
    checkpoint     a run's state as one file, exactly, and its checks
    report         the table of parameters, the curves, the model card
    offline        the pair that `make train` takes where the Hub is out of reach

No room imports one of the five files: what it needs of them it gets as plain arguments.
"""
