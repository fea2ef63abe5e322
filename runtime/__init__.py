"""What the two programs share: above bert, lora and data, below train.py and sample.py.

    devices     cuda, mps or cpu; the type of the products; torch.compile
    fast        a finished model rewritten: the same results, sooner
    graphs      on CUDA, a training step as two graphs
    kernels     what a CPU computes in fewer passes, with gradients written by hand
    run         where a run stands, what it says, and how it goes on
    run_folder  the folder of a run, in which nothing is replaced
    checkpoint  a run's state as one file, exactly
    data_notes  what a run says of its data before it trains
    report      the table of parameters, the curves, the model card
    adapters    folding an adapter into its base, uploading one, going on with its training
    convert     a pickle's tensors to safetensors, a program of its own
    bank        many adapters on one base
    texts       texts to classify: from the command line, a file, standard input
    scoring     how good a model is on texts with labels
    whole_table what sample.py does with a whole table, and the options for that
    labelling   a whole table labelled in pieces, which goes on after a kill

None of these imports train.py or sample.py.
"""
