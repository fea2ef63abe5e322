"""What a task knows: its loss and its answers as transformers', its scores as scikit-learn's."""

import re
from itertools import compress

import numpy as np
import pytest
import sklearn.dummy
import sklearn.metrics
import sklearn.utils
import torch
import transformers
from helpers import TINY, draw

from bert import BertConfig
from support.errors import InputError
from support.glue import TASKS as GLUE_TASKS
from support.tasks import Classification, MultiLabel, Regression, metric_in_words, task_of

KINDS = {
    "classes": (Classification(["bad", "so-so", "good"]), torch.tensor([2, 0, 1, 1])),
    "sets of labels": (
        MultiLabel(["toxic", "insult", "threat"]),
        torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]),
    ),
    "numbers": (Regression(["LABEL_0"]), torch.tensor([0.5, 4.0, -1.25, 3.0])),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def theirs(kind):
    """A random model of transformers' for the task."""
    task, _ = kind
    config = transformers.BertConfig(
        **TINY, num_labels=len(task.names), id2label=dict(enumerate(task.names))
    )
    model = transformers.BertForSequenceClassification(config)
    draw(model, std=0.3)
    return model.eval()


INPUTS = torch.arange(24).reshape(4, 6)


def test_the_loss_is_that_of_transformers(kind, theirs):
    """Its own for so many labels: the mean, and here it is summed for the training."""
    task, labels = kind
    output = theirs(INPUTS, labels=labels)
    assert theirs.config.problem_type == task.problem_type  # which it has gathered itself
    loss = task.training_loss(output.logits, labels)
    assert torch.allclose(loss / len(labels), output.loss)
    assert task.evaluation(output.logits.detach(), labels)["loss"] == pytest.approx(
        output.loss.item()
    )
    ours = torch.autograd.grad(loss / len(labels), output.logits, retain_graph=True)[0]
    assert torch.allclose(ours, torch.autograd.grad(output.loss, output.logits)[0])


@torch.no_grad()
def test_answers_are_those_of_a_pipeline(kind, theirs):
    task, _ = kind
    logits = theirs(INPUTS).logits
    pipeline = transformers.TextClassificationPipeline.__new__(
        transformers.TextClassificationPipeline
    )
    pipeline.model = theirs
    pipeline.framework = "pt"
    pipeline.return_all_scores = True
    theirs.config.problem_type = task.problem_type
    columns = task.columns(logits)
    predicted = task.predict(logits)
    for row in range(len(logits)):
        output = {"logits": logits[row : row + 1]}
        expected = pipeline.postprocess(output, top_k=None, _legacy=False)
        answer = task.answer(logits[row])
        if task.names == ["LABEL_0"]:
            assert answer == {"score": pytest.approx(expected[0]["score"], abs=1e-6)}
            assert predicted[row] == pytest.approx(expected[0]["score"])
        elif predicted.ndim == 2:
            scores = {one["label"]: one["score"] for one in expected}
            assert answer["scores"] == pytest.approx(scores, abs=1e-6)
            above = [name for name in task.names if scores[name] > 0.5]
            assert answer["label"] == above
            assert [*compress(task.names, predicted[row])] == above
            sure = min(max(score, 1 - score) for score in scores.values())
            assert answer["confidence"] == pytest.approx(sure, abs=1e-6)
        else:
            scores = {one["label"]: one["score"] for one in expected}
            assert answer["scores"] == pytest.approx(scores, abs=1e-6)
            assert answer["label"] == expected[0]["label"] == task.names[predicted[row]]
            assert answer["confidence"] == max(answer["scores"].values())
        assert {name: values[row] for name, values in columns.items()} == {
            name: value for name, value in answer.items() if name != "scores"
        }


def test_an_answer_is_a_column_of_text():
    """The texts after it stand in one column too."""
    classes, sets, numbers = (task for task, _ in KINDS.values())
    shown = [
        classes.as_text({"label": "good", "confidence": 0.98765}),
        classes.as_text({"label": "so-so", "confidence": 1.0}),
        sets.as_text({"label": ["insult"], "confidence": 0.98765}),
        sets.as_text({"label": ["a", "b"], "confidence": 0.2}),
        sets.as_text({"label": [], "confidence": 0.98765}),
        numbers.as_text({"score": 3.14159}),
        numbers.as_text({"score": -12.0}),
    ]
    assert [text.split() for text in shown] == [
        ["good", "98.8%"],
        ["so-so", "100.0%"],
        ["insult", "98.8%"],
        ["a,b", "20.0%"],
        ["-", "98.8%"],
        ["3.142"],
        ["-12.000"],
    ]
    assert len({len(text) for text in shown}) == 1


def test_scores_are_the_accuracy_the_metric_and_what_glue_reports():
    random = np.random.default_rng(0)
    predicted, labels = torch.from_numpy(random.integers(0, 2, (2, 100)))
    for metric in "accuracy", "f1", "matthews_correlation":
        scores = Classification(["a", "b"], metric).scores(predicted, labels)
        assert scores.keys() == {"accuracy", metric}
    for metric, names, _ in GLUE_TASKS.values():
        if names:
            task = task_of(BertConfig(id2label=dict(enumerate(names))))
            assert task.metric == metric and task.metrics.keys() == {"accuracy", metric}
            assert Classification(names, "accuracy").metrics.keys() == {"accuracy", metric}
    assert Regression(["LABEL_0"]).scores(predicted, labels).keys() == {"pearson", "spearman"}


@pytest.mark.filterwarnings("ignore:A single label")
@pytest.mark.parametrize("name", [name for name in GLUE_TASKS if name != "stsb"])
def test_one_answer_for_all_is_that_of_a_dummy(name):
    """The commonest class of the training split, scored on the validation split by sklearn."""
    metric, names, _ = GLUE_TASKS[name]
    a, b = np.random.default_rng(0).integers(0, 2, (2, 500))
    train = (a | b)[:300]  # mostly 1
    labels = (a & b)[300:]  # mostly 0
    dummy = sklearn.dummy.DummyClassifier(strategy="most_frequent").fit(train, train)
    predicted = dummy.predict(labels)
    expected = {"accuracy": sklearn.metrics.accuracy_score(labels, predicted)}
    if metric == "f1":
        expected["f1"] = sklearn.metrics.f1_score(labels, predicted)
    if metric == "matthews_correlation":
        expected[metric] = sklearn.metrics.matthews_corrcoef(labels, predicted)
    given = map(torch.from_numpy, (train, labels))
    what, scores = Classification(names).constant_scores(*given)
    assert what == names[1] and scores == pytest.approx(expected)


def test_one_number_for_all_is_that_of_a_dummy():
    numbers = np.random.default_rng(1).normal(2, 1, 1000).astype(np.float32)
    train, labels = numbers[:600], numbers[600:]
    dummy = sklearn.dummy.DummyRegressor(strategy="mean").fit(train, train)
    loss = sklearn.metrics.mean_squared_error(labels, dummy.predict(labels))
    given = map(torch.from_numpy, (train, labels))
    what, scores = Regression(["LABEL_0"], "spearman").constant_scores(*given)
    assert what == pytest.approx(dummy.constant_.item(), abs=1e-6)
    assert scores == pytest.approx({"loss": loss, "pearson": 0.0, "spearman": 0.0})


def test_a_task_says_what_it_is():
    assert Classification(["no", "yes"]).describe() == "classes no, yes"
    many = Classification([str(n) for n in range(12)])
    assert many.describe() == "classes 0, 1, 2 and 9 more"
    assert MultiLabel(["a", "b"]).describe() == "any of the labels a, b"
    assert Regression(["LABEL_0"]).describe() == "one number, a regression"
    assert metric_in_words(Classification(["no", "yes"], "f1")) == "f1 of 'yes'"
    assert metric_in_words(Classification(["no", "yes"], "macro_f1")) == "macro_f1"
    assert metric_in_words(MultiLabel(["a", "b"])) == "macro_f1"


def test_a_metric_of_another_task_is_refused():
    for metric in "f1", "matthews_correlation":
        known = f"{metric}: for classes a, b, c it is accuracy, macro_f1$"
        with pytest.raises(InputError, match=known):
            Classification(["a", "b", "c"], metric)
    assert Classification(["a", "b", "c"], "macro_f1").metrics.keys() == {"accuracy", "macro_f1"}
    for metric in "micro_f1", "pearson":
        with pytest.raises(InputError, match=f"{metric}: for classes a, b it is accuracy, "):
            Classification(["a", "b"], metric)
    for metric in "f1", "matthews_correlation", "spearman":
        with pytest.raises(InputError, match=f"{metric}: for any of the labels a, b it is macro_"):
            MultiLabel(["a", "b"], metric)


@pytest.mark.parametrize("labels, told, meant", [
    (1, None, "regression"),
    (1, "regression", "regression"),
    (2, None, "single_label_classification"),
    (3, "single_label_classification", "single_label_classification"),
    (1, "single_label_classification", None),
    (2, "regression", None),
    (3, "multi_label_classification", "multi_label_classification"),
    (1, "multi_label_classification", "multi_label_classification"),
    (3, "no problem", None),
])  # fmt: skip
def test_the_task_of_a_model_is_that_of_its_config(labels, told, meant):
    """As in transformers: of one label a regression, of more a classification, where it is not
    told. Several numbers are refused."""
    names = [f"LABEL_{n}" for n in range(labels)]
    config = BertConfig(id2label=dict(enumerate(names)), problem_type=told)
    if meant is None:
        with pytest.raises(InputError, match=rf"problem_type '{told}' with {labels} labels is not"):
            task_of(config)
    else:
        task = task_of(config)
        assert (task.problem_type, task.names) == (meant, names)


def test_several_labels_above_a_threshold():
    """Subset accuracy and F1 by sklearn; the threshold is the user's."""
    names = ["toxic", "insult", "threat"]
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 3, generator=random)
    labels = (torch.rand(200, 3, generator=random) < 0.4).float()
    for threshold in 0.5, 0.3:
        task = MultiLabel(names, threshold=threshold)
        given = torch.sigmoid(logits) > threshold
        assert torch.equal(task.predict(logits), given)
        expected = {"accuracy": sklearn.metrics.accuracy_score(labels, given)}
        for average in "macro", "micro":
            expected[f"{average}_f1"] = sklearn.metrics.f1_score(labels, given, average=average)
        found = task.scores(task.predict(logits), labels)
        assert found == pytest.approx(expected, abs=1e-12)


def test_the_labels_that_most_rows_have():
    task = MultiLabel(["toxic", "insult", "threat"])
    train = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 1]])
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    what, scores = task.constant_scores(train, labels)
    common = np.array([[1, 1, 0], [1, 1, 0]])
    micro = sklearn.metrics.f1_score(labels, common, average="micro")
    assert what == ["toxic", "insult"]
    assert scores["accuracy"] == 0.5 and scores["micro_f1"] == pytest.approx(micro)
    assert task.constant_scores(0 * train, labels)[0] == []


@pytest.mark.parametrize("weights", [None, [0.2, 0.7, 2.1]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_the_training_is_torchs(weights, smoothing):
    """Weighted and smoothed, and its gradient; the loss that is printed is neither."""
    task = Classification(["a", "b", "c"])
    task.weights = None if weights is None else torch.tensor(weights)
    task.label_smoothing = smoothing
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 2, 1, 0, 2, 2])
    theirs = torch.nn.CrossEntropyLoss(task.weights, label_smoothing=smoothing)
    whole = 8.0 if weights is None else task.weights[labels].sum()
    ours = task.training_loss(logits, labels) / whole
    assert torch.allclose(ours, theirs(logits, labels), rtol=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs(logits, labels))]
    assert torch.allclose(*gradients, atol=1e-8)
    plain = torch.nn.CrossEntropyLoss(reduction="none")
    assert torch.equal(task.row_losses(logits, labels), plain(logits, labels))


LABELS = np.array([0] * 90 + [1] * 8 + [2] * 2)
NAMES = ["a", "b", "c"]


def adjust(task, class_weights: str, label_smoothing: float = 0.0) -> None:
    task.adjust_loss(class_weights, label_smoothing, LABELS)


def test_balanced_weights_are_those_of_scikit_learn():
    task = Classification(NAMES)
    adjust(task, "balanced", 0.1)
    weights = sklearn.utils.compute_class_weight
    theirs = weights("balanced", classes=np.arange(3), y=LABELS)
    assert task.weights.tolist() == pytest.approx(theirs, rel=1e-6)
    assert task.label_smoothing == 0.1


def test_weights_leave_the_mean_of_the_rows_at_one():
    """So the mean over all rows is PyTorch's, which divides by the sum of their weights."""
    task = Classification(NAMES)
    adjust(task, "2,2,10")
    assert task.weights[LABELS].mean() == pytest.approx(1)
    assert (task.weights / task.weights[0]).tolist() == pytest.approx([1, 1, 5])
    logits, labels = torch.randn(100, 3), torch.from_numpy(LABELS)
    theirs = torch.nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 5.0]))(logits, labels)
    assert task.training_loss(logits, labels) / 100 == pytest.approx(theirs.item(), rel=1e-5)


OTHERS = ["1,2", "1", "1,0,1", "1,-1,1", "-1,-1,-1", "1,nan,1", "1,inf,1", "inf,inf,inf"]


@pytest.mark.parametrize("words", [*OTHERS, "1e308,1,1e308", "1e-60,1,1", "1,2,x", "auto"])
def test_other_weights_are_refused(words):
    with pytest.raises(InputError, match=f"^--class-weights {words}: ") as error:
        adjust(Classification(NAMES), words)
    assert re.search("3 positive numbers of like sizes, for a, b, c", str(error.value))


def test_huge_weights_are_as_small_ones():
    """Their sum is no float."""
    task = Classification(NAMES)
    adjust(task, "1e307,1e307,5e307")
    assert (task.weights / task.weights[0]).tolist() == pytest.approx([1, 1, 5])


def test_classes_of_one_name_are_refused():
    with pytest.raises(InputError, match="have one name"):
        task_of(BertConfig(id2label={0: "a", 1: "a"}))


@pytest.mark.parametrize("kind", ["sets of labels", "numbers"], indirect=True)
def test_other_tasks_take_no_weights(kind):
    task, _ = kind
    adjust(task, "")
    for words, smoothing in ("balanced", 0.0), ("", 0.1):
        with pytest.raises(InputError, match="are for one class a text, and not for"):
            adjust(task, words, smoothing)


@pytest.mark.parametrize("kind", ["sets of labels", "numbers"], indirect=True)
def test_other_tasks_minimize_their_loss(kind):
    task, labels = kind
    logits = torch.randn(len(labels), len(task.names))
    assert torch.equal(task.training_loss(logits, labels), task.row_losses(logits, labels).sum())


def test_columns_of_scores_are_those_of_the_answers():
    logits = torch.randn(5, 3)
    for task in Classification(["a", "b", "c"]), MultiLabel(["a", "b", "c"]):
        columns = task.columns(logits, scores=True)
        for row, answer in enumerate(map(task.answer, logits)):
            assert {name: columns[f"score_{name}"][row] for name in "abc"} == answer["scores"]
            assert columns["label"][row] == answer["label"]
        assert [*task.columns(logits)] == ["label", "confidence"]
    with pytest.raises(InputError, match="--scores: a regression has one number"):
        Regression(["LABEL_0"]).columns(logits[:, :1], scores=True)
