"""BERT, the encoder of Devlin et al. (2018, arXiv:1810.04805), in plain PyTorch.

    model = BertForSequenceClassification.from_pretrained("google-bert/bert-base-uncased")
    logits = model(torch.tensor([[101, 2307, 2143, 102]]))          # "[CLS] great film [SEP]" -> (1, 2)

Every module bears the name it has in the official checkpoint, so `state_dict()` is the file. The
file reads as the data flows: embeddings, attention, layer, encoder, pooler, classifier; after the
model comes what loads and saves it. One set of letters gives the shapes in the whole project:

    B  sentences in a batch        D  hidden size (768)           I  intermediate size (3072)
    S  tokens in a sentence        H  attention heads (12)        C  classes
    Q  tokens that are computed    W  width of a head, D = H·W    R  LoRA rank
"""

import argparse
import contextlib
import json
import os
import re
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class InputError(Exception):
    """Something the user gave cannot be used: the message is the one line that they get to read."""


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

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @classmethod
    def from_json(cls, path: str | Path) -> "BertConfig":
        """Reads a config.json. Raises InputError naming the value that this encoder does not support."""
        raw = read_json(path)
        supported = {
            "model_type": ["bert"],
            "hidden_act": ["gelu"],
            "position_embedding_type": ["absolute"],
            "is_decoder": [False],
            "add_cross_attention": [False],
            "problem_type": [None, "single_label_classification"],
        }
        for name, values in supported.items():
            if raw.get(name, values[0]) not in values:
                raise InputError(f"{path}: {name} {raw[name]!r} is not supported, only {values[-1]!r}")
        known = {f.name: raw[f.name] for f in fields(cls) if raw.get(f.name) is not None}
        for f in fields(cls)[:-1]:
            value, low = known.get(f.name, f.default), int(f.name != "pad_token_id")
            if f.type is int and not (type(value) is int and low <= value < 2**31):
                raise InputError(f"{path}: {f.name} must be a whole number from {low}, not {value!r:.40}")
            if f.type is not int and value is not None and not (type(value) in (int, float) and 0 <= value < 1):
                raise InputError(f"{path}: {f.name} must be at least 0 and below 1, not {value!r:.40}")
        if "id2label" in known:
            try:
                known["id2label"] = {int(i): str(label) for i, label in known["id2label"].items()}
            except (AttributeError, ValueError):
                known["id2label"] = {}
            if not known["id2label"] or sorted(known["id2label"]) != list(range(len(known["id2label"]))):
                raise InputError(f"{path}: id2label must name the classes 0, 1, 2, …")
        config = cls(**known)
        if config.hidden_size % config.num_attention_heads or config.num_hidden_layers > 200:
            raise InputError(f"{path}: hidden_size must be a multiple of num_attention_heads, and layers at most 200")
        if config.pad_token_id >= config.vocab_size:
            raise InputError(f"{path}: pad_token_id {config.pad_token_id} is none of the {config.vocab_size} tokens")
        return config

    def to_json(self, path: str | Path, **more) -> None:
        """Writes a config.json that transformers reads; `more` adds fields such as architectures."""
        raw = {"model_type": "bert", "hidden_act": "gelu", **asdict(self), **more}
        write_json(path, raw | {"label2id": {label: i for i, label in self.id2label.items()}})


def draw_kept(x: Tensor, p: float) -> Tensor:
    """What dropout keeps of x: a tensor of its shape that is 0 with probability p, and 1 elsewhere."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.rand_like(x, dtype=torch.float32) >= p
    # PyTorch's Bernoulli draws take a sixth of a training step on a CPU. These cost a tenth of them: 64 random bits
    # at a time, cut into eight numbers from -128 to 127, of which the lowest p * 256 are dropped; a fraction of one
    # is rounded up or down at random, so that the rate is p on average.
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    lowest_kept = min(int(p * 256 + torch.rand(()).item()), 255) - 128
    return bits.view(torch.int8)[: x.numel()].view(x.shape).ge_(lowest_kept)


class DropoutOnCPU(torch.autograd.Function):
    """kept · x / (1 - p). By hand, as `kept` takes a quarter of what autograd would hold in memory for the way back."""

    @staticmethod
    def forward(ctx, x, p):
        kept, ctx.scale = draw_kept(x, p), 1 / (1 - p)
        ctx.save_for_backward(kept)
        return kept.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, dy):
        (kept,) = ctx.saved_tensors
        return kept.to(dy.dtype).mul_(dy).mul_(ctx.scale), None


class Dropout(nn.Dropout):
    """nn.Dropout, with cheaper draws on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not (self.training and self.p):
            return super().forward(x)
        return DropoutOnCPU.apply(x, self.p)


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
        x = self.word_embeddings(input_ids) + segment + self.position_embeddings.weight[:S]  # (B, S, D)
        return self.dropout(self.LayerNorm(x))


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

    def forward(self, x: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        """`x` (B, S, D) is attended to by the positions `read` (B, Q, D); returns (B, Q, D)."""
        q = self.split_heads(self.query(read))  # (B, H, Q, W)
        k = self.split_heads(self.key(x))  # (B, H, S, W)
        v = self.split_heads(self.value(x))  # (B, H, S, W)
        p = self.dropout.p if self.training else 0.0
        if p and x.device.type == "cpu":  # the fused kernel knows no dropout there: PyTorch would take the same steps
            scores = (q @ k.transpose(-2, -1)).mul_(q.shape[-1] ** -0.5)  # (B, H, Q, S)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            context = self.dropout(scores.softmax(-1)) @ v  # (B, H, Q, W)
        else:
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)  # (B, H, Q, W)
        return context.transpose(1, 2).flatten(2)  # (B, Q, D)


class BertOutput(nn.Module):
    """Projection, dropout, residual, LayerNorm: the second half of both sublayers (post-norm)."""

    def __init__(self, in_features: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # (B, Q, D)


class BertAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config.hidden_size, config)

    def forward(self, x: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.self(x, read, mask), residual=read)  # (B, Q, D)


class BertIntermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))  # (B, Q, I), the exact erf form


class BertLayer(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None, cls_only: bool = False) -> Tensor:
        """`x` (B, S, D) to (B, S, D); with `cls_only` to (B, 1, D), the first token's row of the same."""
        read = x[:, :1] if cls_only else x  # (B, Q, D)
        attended = self.attention(x, read, mask)  # (B, Q, D)
        return self.output(self.intermediate(attended), residual=attended)  # (B, Q, D)


class BertEncoder(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None, cls_only: bool = False) -> Tensor:
        for layer in self.layer[:-1]:
            x = layer(x, mask)  # (B, S, D)
        return self.layer[-1](x, mask, cls_only)  # (B, Q, D)


class BertPooler(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))  # (B, S, D) -> (B, D)


class NoInit(TorchFunctionMode):
    """Inside this context the functions of torch.nn.init do nothing: on meta tensors they would import for a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return None if getattr(function, "__module__", None) == "torch.nn.init" else function(*args, **(kwargs or {}))


class PretrainedModel(nn.Module):
    """Loading and saving, for the two models below."""

    new_modules: tuple[str, ...] = ()  # the layers that the file lacks, and that had to be drawn

    @classmethod
    def from_pretrained(cls, name: str, num_labels: int | None = None, revision: str | None = None):
        """Opens a directory or a Hub repository (`owner/name` or `owner/name@revision`), in float32, in eval mode.

        Reads config.json and model.safetensors, with or without the prefix `bert.`, in float32,
        float16 or bfloat16. `num_labels` overrides the config's. A classifier or a pooler that the
        file lacks is drawn from the global generator, and `new_modules` names it; any other missing,
        surplus or wrongly shaped tensor raises InputError with its name.
        """
        name = f"{name}@{revision}" if revision else name
        config = BertConfig.from_json(find_file(name, "config.json"))
        if num_labels and num_labels != config.num_labels:
            config.id2label = {i: f"LABEL_{i}" for i in range(num_labels)}
        with torch.device("meta"), NoInit():  # nothing is drawn or allocated that the file then replaces
            model = cls(config)
        expected = model.state_dict()
        weights = read_weights(find_file(name, "model.safetensors"), expected)
        missing = [key for key in expected if key not in weights]
        for module in ("pooler.dense", "bert.pooler.dense", "classifier"):
            weight, bias = f"{module}.weight", f"{module}.bias"
            if weight in missing and bias in missing:
                model.new_modules += (module,)
                weights[weight] = torch.randn(expected[weight].shape) * config.initializer_range
                weights[bias] = torch.zeros(expected[bias].shape)
        if lacking := [key for key in missing if key not in weights]:
            raise InputError(f"{name}: model.safetensors lacks {listing(lacking)}")
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which transformers opens as its own."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.config.to_json(Path(folder) / "config.json", architectures=[type(self).__name__])
        write_tensors(Path(folder) / "model.safetensors", self.state_dict(), {"format": "pt"})


class BertModel(PretrainedModel):
    """The encoder with its pooler."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
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

        `attention_mask` (B, S) is 1 on tokens and 0 on padding; None says that nothing is padded,
        and costs nothing. `token_type_ids` (B, S) is 0 on the first text and 1 on the second.
        With `cls_only` the last layer computes the row of [CLS] alone, the one that the pooler
        reads, and `last_hidden_state` is (B, 1, D).
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise InputError(f"{input_ids.shape[1]} tokens are more than the {limit} positions of this model")
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
        x = self.embeddings(input_ids, token_type_ids)  # (B, S, D)
        x = self.encoder(x, mask, cls_only)  # (B, Q, D)
        return x, self.pooler(x)


class BertForSequenceClassification(PretrainedModel):
    """BERT with a linear classifier on the pooled [CLS] (section 4.1)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        rate = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Token ids (B, S), and the rest as in BertModel, to logits (B, C)."""
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids, cls_only=True)  # (B, D)
        return self.classifier(self.dropout(pooled))  # (B, C)


# Files, in and out.


def read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a BERT safetensors file, in float32, under the names in `expected`.

    Raises InputError, naming the tensor, for one that is surplus, has another shape than in
    `expected`, is no floating-point tensor or holds NaN or infinity. Missing ones are the caller's.
    """
    names = {name.removeprefix("bert."): name for name in expected}
    weights = {}
    with open_safetensors(path) as file:
        for key in file.keys():
            # The official file of 2018 says gamma and beta; the files of bare encoders have no prefix.
            name = key.removeprefix("bert.")
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
            if name not in names:
                # Heads of pre-training and of fine-tuning, and a buffer of early transformers: none of our weights.
                if name.startswith(("cls.", "classifier.")) or name == "embeddings.position_ids":
                    continue
                raise InputError(f"{path}: surplus tensor {key}, which a BERT of this config.json does not have")
            weights[names[name]] = read_tensor(file, path, key, expected[names[name]].shape)
    return weights


def open_safetensors(path: str | Path):
    """`safe_open`, with InputError for a file that is truncated or no safetensors at all."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); download or save it again") from None


def read_tensor(file, path: str | Path, key: str, shape: torch.Size | None = None) -> Tensor:
    """One finite floating-point tensor out of an open safetensors file, as float32."""
    found = torch.Size(file.get_slice(key).get_shape())
    if shape is not None and found != shape:
        raise InputError(f"{path}: tensor {key} has the shape {list(found)}, expected {list(shape)}")
    try:
        tensor = file.get_tensor(key)
    except (SafetensorError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: tensor {key} cannot be read ({first_line(error)})") from None
    if not tensor.is_floating_point():
        raise InputError(f"{path}: tensor {key} is {tensor.dtype}, expected float32, float16 or bfloat16")
    tensor = tensor.float()
    if not torch.isfinite(tensor.sum()):
        raise InputError(f"{path}: tensor {key} holds NaN or infinity; the file is damaged")
    return tensor


def find_file(name: str, filename: str, repo_type: str = "model", required: bool = True) -> Path | None:
    """The path of a file in the directory `name`, or else in the Hub's repository `name[@revision]`.

    From the Hub it is downloaded once and kept in its cache (HF_HOME, HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE mean what they mean elsewhere). Without `required`, an absent file is None.
    """
    folder = Path(name)
    if folder.is_dir():
        if (folder / filename).is_file():
            return folder / filename
        if not required:
            return None
        pickled = (folder / "pytorch_model.bin").exists() and filename == "model.safetensors"
        hint = "; its pytorch_model.bin is a pickle, which can run code: convert it to safetensors" if pickled else ""
        raise InputError(f"{name}: the directory has no {filename}{hint}")
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repository):
        raise InputError(f"{name}: no such directory, and no name of a Hub repository")
    from huggingface_hub import _CACHED_NO_EXIST, errors, hf_hub_download, logging, try_to_load_from_cache

    logging.set_verbosity_error()  # the one line says it all
    which = {"repo_type": repo_type, "revision": revision or None}
    with hub_errors(name):
        try:
            return Path(hf_hub_download(repository, filename, **which))
        except errors.RemoteEntryNotFoundError:
            if required:
                raise InputError(f"{name}: the Hub's repository has no {filename}") from None
        except errors.LocalEntryNotFoundError:  # the Hub is out of reach, but may have said that there is no such file
            if required or try_to_load_from_cache(repository, filename, **which) is not _CACHED_NO_EXIST:
                raise
    return None


@contextlib.contextmanager
def hub_errors(name: str):
    """Turns whatever the Hub or the network does inside the block into one line."""
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except Exception as error:
        explanations = {
            errors.GatedRepoError: "asks for a login: accept its terms on the Hub, then run `hf auth login`",
            errors.RepositoryNotFoundError: "neither a directory here nor a public Hub repository; "
            "if it is a private one, run `hf auth login` first",
            errors.RevisionNotFoundError: "the Hub's repository has no such revision",
            errors.LocalEntryNotFoundError: "no such directory, and the Hub cannot be reached "
            "(nor is it in the cache); check the network, or give a directory",
            errors.LocalTokenNotFoundError: "nobody is logged in to the Hub: run `hf auth login` first",
        }
        unforeseen = f"the Hub did not answer as it should ({first_line(error)}); try again"
        text = next((text for kind, text in explanations.items() if isinstance(error, kind)), unforeseen)
        raise InputError(f"{name}: {text}") from None


def read_json(path: str | Path) -> dict:
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        json.dumps(raw, ensure_ascii=False).encode()  # half a surrogate pair can be written in JSON, but is no text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({first_line(error)})") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds a JSON {type(raw).__name__}, expected an object")
    return raw


def write_json(path: str | Path, value: dict) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def written_whole(path: str | Path):
    """Yields a temporary path beside `path`; what the block writes there becomes `path` whole, or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # were it a link, it would be written through
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, written whole."""
    with written_whole(path) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def listing(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, as all others are."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str):
        raise InputError(f"{message} (--help lists the options)")


def run_main(main) -> None:
    """Runs a program's main(). Known errors become one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output (head, less) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except OSError as error:
        message = f"{error.filename or 'writing'}: {error.strerror or first_line(error)}"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)
