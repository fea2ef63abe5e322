"""train.py with the classifier alone: the adapters are there, but B stays zero, so that they add nothing.

python experiments/classifier_alone.py --rank 1 --lr 3e-3        # all options of train.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from support.console import run_main


def mark_only_the_classifier(model) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier."))


if __name__ == "__main__":
    train.mark_only_lora_as_trainable = mark_only_the_classifier
    run_main(train.main)
