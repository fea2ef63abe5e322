"""BERT, the encoder of Devlin et al. (2018, arXiv:1810.04805), in plain PyTorch.

    model = BertForSequenceClassification.from_pretrained("google-bert/bert-base-uncased")
    logits = model(torch.tensor([[101, 2307, 2143, 102]]))          # "[CLS] great film [SEP]" -> (1, 2)

A text begins with the token [CLS], whose last state stands for the whole text, and ends with [SEP]. The modules have
the names of the official checkpoint; where a file has more, or other names, read_weights at the end deals with it. This
file reads as the data flows: embeddings, attention, layer, encoder, pooler, classifier; then the loading. One set of
letters gives the shapes in the whole project:

    B  sentences in a batch        D  hidden size (768)           I  intermediate size (3072)
    S  tokens in a sentence        H  attention heads (12)        C  classes
    Q  tokens that attend:         W  width of a head, D = H·W    R  LoRA rank
       all S, or [CLS] alone       N  sentences of a data set     T  tokens laid in one row
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support import base_files, faster
from support.files import InputError, listing, open_safetensors, read_tensor, write_tensors
from support.hub import find_file


@dataclass
class BertConfig:
    """The architecture, under the names of config.json; the defaults are bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: as hidden_dropout_prob
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    text_pairs: bool | None = (
        None  # of this project alone: whether it was trained on pairs; None: nobody said
    )

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def problem_type(self) -> str:
        return base_files.problem_type(self.num_labels)

    @classmethod
    def from_json(cls, path: str | Path) -> "BertConfig":
        """Reads a config.json. Raises InputError naming the value that this encoder does not support."""
        return cls(**base_files.read_config(path, cls))

    def to_json(self, path: str | Path, **more) -> None:
        """Writes a config.json that transformers reads; `more` adds fields such as architectures."""
        base_files.write_config(path, asdict(self) | more)


class Dropout(nn.Dropout):
    """In training, zero with probability p, and x / (1 - p) otherwise (Srivastava et al., 2014)."""

    def forward(self, x: Tensor) -> Tensor:
        if not faster.on_cpu(x):
            return F.dropout(x, self.p, self.training)
        return faster.dropout(
            x, self.p, self.training
        )  # the same, by cheaper draws: tests/support/test_faster.py


class BertEmbeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised (section 3)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        S = input_ids.shape[1]
        if token_type_ids is None:
            segment = self.token_type_embeddings.weight[0]  # (D,)
        else:
            segment = self.token_type_embeddings(token_type_ids)  # (B, S, D)
        position = self.position_embeddings.weight[:S]  # (S, D)
        x = self.word_embeddings(input_ids) + segment + position  # (B, S, D)
        return self.dropout(self.LayerNorm(x))  # (B, S, D)


class BertSelfAttention(nn.Module):
    """softmax(QKᵀ/√W)·V in H heads (Vaswani et al., 2017, section 3.2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)

    def split_heads(self, x: Tensor) -> Tensor:
        B, S, D = x.shape
        return x.view(B, S, self.num_heads, D // self.num_heads).transpose(1, 2)  # (B, H, S, W)

    def forward(self, x: Tensor, queries: Tensor, mask: Tensor | None) -> Tensor:
        """The tokens `queries` (B, Q, D) attend to `x` (B, S, D), where `mask` (B, 1, 1, S) is true: (B, Q, D)."""
        if (
            self.training and queries is x and faster.on_cpu(x)
        ):  # in one pass, with one dropout mask
            q, k, v = faster.read_together(x, self.query, self.key, self.value)  # (B, S, D)
        else:
            q, k, v = self.query(queries), self.key(x), self.value(x)  # (B, Q, D), twice (B, S, D)
        q, k, v = (
            self.split_heads(q),
            self.split_heads(k),
            self.split_heads(v),
        )  # (B, H, Q, W), twice (B, H, S, W)
        if (
            self.training and x.device.type == "cpu"
        ):  # where the kernel's backward pass, below, is slower
            scores = (q @ k.transpose(-2, -1)).mul_(q.shape[-1] ** -0.5)  # (B, H, Q, S)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            context = self.dropout(scores.softmax(-1)) @ v  # (B, H, Q, W)
        else:  # the same in one fused kernel: tests/test_bert.py
            p = self.dropout.p if self.training else 0.0
            context = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=p
            )  # (B, H, Q, W)
        return context.transpose(1, 2).flatten(2)  # (B, Q, D)


class BertOutput(nn.Module):
    """Projection, dropout, residual, LayerNorm: the end of each half of a layer."""

    def __init__(self, in_features: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # (B, Q, D)


class BertAttention(nn.Module):
    """The first half of a layer: self-attention and what follows it."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config.hidden_size, config)

    def forward(self, x: Tensor, queries: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(x, queries, mask), residual=queries)  # (B, Q, D)


class BertIntermediate(nn.Module):
    """The second half of a layer begins: from D to I numbers for each token, through GELU (section A.2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))  # (B, Q, I), the exact erf form


class BertLayer(nn.Module):
    """Attention, in which tokens meet, then two linear layers on each token by itself."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None, cls_only: bool = False) -> Tensor:
        """`x` (B, S, D) to (B, S, D); with `cls_only` to (B, 1, D), the row of the first token, [CLS].

        That row is exact: it attends to all tokens, and after attention each row is computed without the others. Only
        the last layer may leave the others out, because a next one would attend to them.
        """
        queries = x[:, :1] if cls_only else x  # (B, Q, D)
        attended = self.attention(x, queries, mask)  # (B, Q, D)
        return self.output(self.intermediate(attended), residual=attended)  # (B, Q, D)


class BertEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None, cls_only: bool = False) -> Tensor:
        for layer in self.layer[:-1]:
            x = layer(x, mask)  # (B, S, D)
        return self.layer[-1](x, mask, cls_only)  # (B, Q, D)


class BertPooler(nn.Module):
    """The row of [CLS], which stands for the whole text, through one more layer (section 3.1, task 2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))  # (B, Q, D) -> (B, D)


class PretrainedModel(nn.Module):
    """What the two models below share; the loading itself comes after them."""

    new_modules: tuple[
        str, ...
    ] = ()  # layers drawn anew, which the file lacked or had for other classes
    lora_config: dict | None = None  # the settings of LoRA, once lora.py has rewritten the model

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config

    @classmethod
    def from_pretrained(
        cls, name: str, num_labels: int | list[str] | None = None, revision: str | None = None
    ):
        """Opens a directory or a Hub repository (`owner/name` or `owner/name@revision`), in float32, in eval mode.

        Reads config.json and model.safetensors, in float32, float16 or bfloat16. `num_labels`, a number of classes or
        their names, overrides the config's. A classifier or a pooler that the file lacks is drawn at random, by
        PyTorch's own generator, as is a classifier of other classes; `new_modules` names them. Any other missing,
        surplus or wrongly shaped tensor raises InputError with its name.
        """
        return open_pretrained(cls, f"{name}@{revision}" if revision else name, num_labels)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which transformers opens as its own."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.config.to_json(Path(folder) / "config.json", architectures=[type(self).__name__])
        write_tensors(Path(folder) / "model.safetensors", self.state_dict(), {"format": "pt"})


class BertModel(PretrainedModel):
    """The encoder with its pooler."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cls_only: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Token ids (B, S) to `(last_hidden_state, pooler_output)` of shapes (B, S, D) and (B, D).

        `attention_mask` (B, S) is 1 on tokens and 0 on padding; None says that nothing is padded, and costs nothing.
        `token_type_ids` (B, S) is 0 on the first text and 1 on the second. With `cls_only` the last layer computes the
        row of [CLS] alone, the one that the pooler reads, and `last_hidden_state` is (B, 1, D).
        """
        if input_ids.shape[1] > (limit := self.config.max_position_embeddings):
            raise InputError(
                f"{input_ids.shape[1]} tokens are more than the {limit} positions of this model"
            )
        mask = (
            None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        )  # (B, 1, 1, S)
        x = self.embeddings(input_ids, token_type_ids)  # (B, S, D)
        x = self.encoder(x, mask, cls_only)  # (B, Q, D)
        return x, self.pooler(x)


class BertForSequenceClassification(PretrainedModel):
    """BERT with a linear classifier on the pooled [CLS] (section 4.1); of one class it is a regression."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.bert = BertModel(config)
        rate = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, S), and the rest as in BertModel, to logits (B, C)."""
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids, cls_only=True)  # (B, D)
        return self.classifier(self.dropout(pooled))  # (B, C)


def open_pretrained(
    cls: type[PretrainedModel], name: str, num_labels: int | list[str] | None
) -> PretrainedModel:
    """A model of the class `cls`, as from_pretrained says."""
    config = BertConfig.from_json(find_file(name, "config.json"))
    names = [f"LABEL_{i}" for i in range(num_labels)] if isinstance(num_labels, int) else num_labels
    redrawn = names and base_files.other_classes(list(config.id2label.values()), names)
    if redrawn:
        config.id2label = dict(enumerate(names))
    with faster.shapes_only():
        model = cls(config)
    expected = model.state_dict()
    kept = {
        key: tensor
        for key, tensor in expected.items()
        if not (redrawn and key.startswith("classifier."))
    }
    weights = read_weights(find_file(name, "model.safetensors"), kept)
    missing = expected.keys() - weights.keys()
    for module in ("pooler.dense", "bert.pooler.dense", "classifier"):
        weight, bias = f"{module}.weight", f"{module}.bias"
        if {weight, bias} <= missing:
            model.new_modules += (module,)
            weights[weight] = torch.randn(expected[weight].shape) * config.initializer_range
            weights[bias] = torch.zeros(expected[bias].shape)
    if lacking := [key for key in expected if key not in weights]:
        raise InputError(f"{name}: model.safetensors lacks {listing(lacking)}")
    model.load_state_dict(
        weights, assign=True
    )  # until here the parameters had shapes, but no memory
    return model.eval()


def read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a BERT safetensors file, in float32, under the names in `expected`.

    Raises InputError, naming the tensor, for one that is surplus, has another shape than in `expected`, is no
    floating-point tensor or holds NaN or infinity. Missing ones are left to the caller.
    """
    ours = {name.removeprefix("bert."): name for name in expected}
    weights = {}
    with open_safetensors(path) as file:
        for key in file.keys():
            # The official file of 2018 says gamma and beta; the files of bare encoders have no prefix `bert.`
            name = key.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
            name = name.replace("LayerNorm.beta", "LayerNorm.bias")
            if name in ours:
                weights[ours[name]] = read_tensor(file, path, key, expected[ours[name]].shape)
            # What an encoder does not need: heads of pre-training and fine-tuning, a buffer of early transformers.
            elif not name.startswith(("cls.", "classifier.")) and name != "embeddings.position_ids":
                raise InputError(
                    f"{path}: surplus tensor {key}, which a BERT of this config.json does not have"
                )
    return weights
