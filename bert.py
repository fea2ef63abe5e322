"""BERT, the encoder of Devlin et al. (2018, arXiv:1810.04805), in plain PyTorch.

    model = BertForSequenceClassification.from_pretrained("google-bert/bert-base-uncased")
    logits = model(torch.tensor([[101, 2307, 2143, 102]]))  # "[CLS] great film [SEP]" -> (1, 2)

A text begins with the token [CLS], whose last state stands for the whole text, and ends with
[SEP]. The modules have the names of the official checkpoint. This file reads as the data flows:
embeddings, attention, layer, encoder, pooler, classifier; then the loading. It needs no other
file of this project. One set of letters gives the shapes in the whole project:

    B  sentences in a batch        H  attention heads (12)             C  classes
    S  tokens in a sentence        d  width of a head (64), D = H·d    N  sentences of a data set
    D  hidden size (768)           I  intermediate size (3072)         T  tokens laid in one row
    R  rank of LoRA (lora.py, where A, B and W are matrices too, as in the paper)
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

gelu_tanh = partial(F.gelu, approximate="tanh")
tanh_forms = dict.fromkeys(["gelu_new", "gelu_fast", "gelu_pytorch_tanh"], gelu_tanh)
ACTIVATIONS = {"gelu": F.gelu, "gelu_python": F.gelu, "relu": F.relu, **tanh_forms}
SUPPORTED = {  # what config.json may say of these, if it has them
    "model_type": ["bert"],
    "position_embedding_type": ["absolute"],
    "is_decoder": [False],
    "hidden_act": [*ACTIVATIONS],
}
ENCODER = ("embeddings.", "encoder.", "pooler.")


@dataclass
class BertConfig:
    """The architecture, under the names of config.json. The defaults are bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: as hidden_dropout_prob
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    problem_type: str | None = None  # None: a regression of one label, a classification of more
    architectures: list[str] | None = None  # the model's class; None: unknown
    text_pairs: bool | None = None  # whether it was trained on pairs of texts; None: unknown
    model_max_length: int | None = None  # tokens that texts were cut to; None: unknown

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @classmethod
    def from_json(cls, path: str | Path) -> "BertConfig":
        """Reads a config.json. Raises ValueError naming a field that this encoder cannot honour,
        and KeyError where a class between 0 and the last one has no name."""
        values = json.loads(Path(path).read_bytes())
        values = {name: value for name, value in values.items() if value is not None}
        for name, supported in SUPPORTED.items():
            if values.get(name, supported[0]) not in supported:
                raise ValueError(f"{path}: {name} {values[name]!r:.60} is not supported")
        labels = values.get("id2label")
        if not labels:
            labels = {str(n): f"LABEL_{n}" for n in range(values.get("num_labels", 2))}
        values["id2label"] = {n: str(labels[str(n)]) for n in range(len(labels))}
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def to_json(self, path: str | Path, architecture: str) -> None:
        """Writes a config.json that transformers reads, for a model of the class `architecture`."""
        values = {"model_type": "bert", **asdict(self), "architectures": [architecture]}
        values["label2id"] = {label: number for number, label in self.id2label.items()}
        if values["problem_type"] is None and self.num_labels == 1:
            values["problem_type"] = "regression"  # else their pipeline shows the number's sigmoid
        write_json(Path(path), values)


class BertEmbeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised (section 3)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        S = input_ids.shape[1]
        if token_type_ids is None:
            segment = self.token_type_embeddings.weight[0]  # (D,)
        else:
            segment = self.token_type_embeddings(token_type_ids)  # (B, S, D)
        position = self.position_embeddings.weight[:S]  # (S, D)
        x = self.word_embeddings(input_ids) + segment + position  # (B, S, D)
        return self.dropout(self.LayerNorm(x))


class BertSelfAttention(nn.Module):
    """softmax(q kᵀ/√d) v, in H heads side by side (Vaswani et al., 2017, section 3.2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        assert D % self.num_heads == 0, "num_attention_heads must divide hidden_size"
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def split_heads(self, x: Tensor) -> Tensor:
        B, S, D = x.shape
        return x.view(B, S, self.num_heads, D // self.num_heads).transpose(1, 2)  # (B, H, S, d)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` (B, S, D) to (B, S, D); tokens attend where `mask` (B, 1, 1, S) is true."""
        q = self.split_heads(self.query(x))  # (B, H, S, d)
        k = self.split_heads(self.key(x))  # (B, H, S, d)
        v = self.split_heads(self.value(x))  # (B, H, S, d)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, S, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        probabilities = self.dropout(scores.softmax(-1))  # (B, H, S, S)
        context = probabilities @ v  # (B, H, S, d)
        return context.transpose(1, 2).flatten(2)  # (B, S, D)


class BertOutput(nn.Module):
    """Projection, dropout, residual, LayerNorm: the end of each half of a layer."""

    def __init__(self, in_features: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # (B, S, D)


class BertAttention(nn.Module):
    """The first half of a layer: self-attention and what follows it."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config.hidden_size, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(x, mask), residual=x)  # (B, S, D)


class BertIntermediate(nn.Module):
    """The second half of a layer begins: each token from D to I numbers (section A.2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))  # (B, S, I); mostly gelu, in its erf form


class BertLayer(nn.Module):
    """Attention, in which tokens meet, then two linear layers on each token by itself."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention(x, mask)  # (B, S, D)
        return self.output(self.intermediate(x), residual=x)  # (B, S, D)


class BertEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)  # (B, S, D)
        return x


class BertPooler(nn.Module):
    """The state of [CLS], which stands for the whole text, through one more layer (section 3.1)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        # Only the row of [CLS] is read, so runtime/fast.py lets the last layer compute no other,
        # unless this line was edited. Other rows are those of padding too: no mask comes here.
        return torch.tanh(self.dense(x[:, 0]))  # (B, S, D) -> (B, D)


class PretrainedModel(nn.Module):
    """What the two models below share: they are opened and saved."""

    newly_initialized: tuple[str, ...] = ()  # the layers that the file lacked, drawn at random
    lora_config: dict | None = None  # the settings of LoRA, once lora.py has rewritten the model

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(cls, name: str | Path, label_names: list[str] | None = None):
        """Opens a directory or a repository of the Hub, `owner/name[@revision]`, in eval mode.

        A pooler or a classifier that model.safetensors lacks is initialised at random, as is a
        classifier of other classes than `label_names`, or of another task; `newly_initialized`
        names them. Raises RuntimeError for an encoder with tensors missing, surplus or misshapen.
        """
        return open_pretrained(cls, name, label_names)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which transformers opens as its own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.to_json(folder / "config.json", type(self).__name__)
        save_file(self.state_dict(), folder / "model.safetensors", {"format": "pt"})


class BertModel(PretrainedModel):
    """The encoder with its pooler."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)

    def forward(self, input_ids: Tensor, attention_mask=None, token_type_ids=None):
        """Token ids (B, S) to the last states (B, S, D) and the pooled one (B, D).

        `attention_mask` (B, S) is 1 on tokens and 0 on padding; without it nothing is padding.
        `token_type_ids` (B, S) is 0 on the first text and 1 on the second.
        """
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        x = self.embeddings(input_ids, token_type_ids)  # (B, S, D)
        x = self.encoder(x, mask)  # (B, S, D)
        return x, self.pooler(x)


class BertForSequenceClassification(PretrainedModel):
    """BERT with a linear classifier on the pooled [CLS] (section 4.1)."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        rate = config.classifier_dropout
        self.bert = BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask=None, token_type_ids=None) -> Tensor:
        """Token ids (B, S), and the rest as in BertModel, to logits (B, C)."""
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)  # (B, D)
        return self.classifier(self.dropout(pooled))  # (B, C)


# Files.


def open_pretrained(cls, name: str | Path, label_names: list[str] | None):
    """A model of the class `cls`, as PretrainedModel.from_pretrained says."""
    folder = Path(name) if Path(name).is_dir() else download(str(name))
    config = BertConfig.from_json(folder / "config.json")
    # In the file of a model of another class "classifier" may be another layer.
    with_classifier = not config.architectures or cls.__name__ in config.architectures
    if label_names and label_names != [*config.id2label.values()]:
        config.id2label = dict(enumerate(label_names))
        config.problem_type = None
        with_classifier = False
    with NoInit():
        model = cls(config)

    # What the file has for this model, under the model's names. A surplus tensor of the encoder
    # stays, so that load_state_dict refuses it.
    own_keys = {plain_name(key): key for key in model.state_dict()}
    state = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        plain = plain_name(key)
        if plain.startswith("classifier.") and not with_classifier:
            continue
        if plain in own_keys or plain.startswith(ENCODER):
            state[own_keys.get(plain, plain)] = tensor
    state.pop("embeddings.position_ids", None)  # a buffer of early transformers

    # What the file lacks: a pooler or a classifier may be new.
    for path, layer in model.named_modules():
        is_head = path.endswith(("pooler.dense", "classifier"))
        if is_head and not any(key.startswith(path) for key in state):
            nn.init.normal_(layer.weight, std=config.initializer_range)
            nn.init.zeros_(layer.bias)
            state |= layer.state_dict(prefix=f"{path}.")
            model.newly_initialized += (path,)
    model.load_state_dict(state, assign=True)
    return model.float().eval()


def download(name: str) -> Path:
    """The folder with the files of `owner/name[@revision]`, a repository of the Hub."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    files = ["config.json", "model.safetensors"]
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))


class NoInit(TorchFunctionMode):
    """Inside it torch.nn.init does nothing: numbers that a file replaces need not be drawn."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def plain_name(key: str) -> str:
    """A tensor's name in today's file of an encoder alone; others have `bert.` before it."""
    # DataParallel and torch.compile put a word of their own first. The official file of 2018 says
    # gamma and beta.
    name = key.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("bert.")
    return name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")


def write_json(path: Path, values: dict) -> None:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_bytes(f"{text}\n".encode())
