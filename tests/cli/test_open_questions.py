"""What a model's file leaves open is asked in one refusal, whose command answers all of it."""

import logging
import shlex

import keras
import pytest

from batchverify.cli.main import main
from batchverify.config import ModelConfig
from batchverify.errors import OpenQuestionError, PreflightError
from batchverify.model.load import load_model
from tests.support import model_zoo
from tests.support.model_zoo import SHAPE, siamese


class Weighted(keras.layers.Layer):
    """A layer with a weight of its own, of which a file says only the name."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1],), name="kernel")

    def call(self, x):
        return x * self.kernel


def subtract(left, right):
    return left - right


def cosine(left, right):
    return keras.layers.Dot(1, normalize=True)([left - 0.5, right - 0.5])


def of_distance(layer):
    """Returns a network that ends in a distance, without a scale."""
    return siamese(layer, keras.layers.Identity(), rescale=False)


def euclidean_lambda(tensors):
    return keras.ops.sqrt(keras.ops.sum(keras.ops.square(tensors[0] - tensors[1]), axis=-1, keepdims=True))


def lambda_distance(function):
    left, right = keras.Input(SHAPE, name="left"), keras.Input(SHAPE, name="right")
    encoder = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(8)])
    return keras.Model([left, right], keras.layers.Lambda(function, name="distance")([encoder(left), encoder(right)]))


def encoder_of_any_size():
    image = keras.Input((None, None, 3))
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image)))


def two_lambdas():
    left, right = keras.Input(SHAPE, name="left"), keras.Input(SHAPE, name="right")
    encoder = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(6), keras.layers.Lambda(lambda x: x / 2, name="half", arguments={})]
    )
    joined = keras.layers.Lambda(lambda t: keras.ops.abs(t[0] - t[1]), name="distance")([encoder(left), encoder(right)])
    return keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(joined))


def of_own_class():
    left, right = keras.Input(SHAPE, name="left"), keras.Input(SHAPE, name="right")
    encoder = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(6), Weighted(name="own")])
    return keras.Model([left, right], keras.layers.Dense(1)(keras.layers.Subtract()([encoder(left), encoder(right)])))


def of_ten_outputs():
    return siamese(model_zoo.lambda_l1(), keras.layers.Dense(10), rescale=False)


def of_three_images():
    inputs = [keras.Input(SHAPE) for _ in range(3)]
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Add()(inputs))))


OPEN = {
    "a_distance": (lambda: of_distance(model_zoo.euclidean), "--pixels SCALE --output-is distance"),
    "a_lambda": (lambda: siamese(model_zoo.lambda_l1(), rescale=False), "--lambda distance=l1 --pixels SCALE"),
    "a_lambda_at_the_end": (
        lambda: lambda_distance(euclidean_lambda), "--lambda distance=euclidean --pixels SCALE --output-is distance",
    ),
    "a_sum": (
        lambda: lambda_distance(lambda t: keras.ops.sum(keras.ops.abs(t[0] - t[1]), axis=-1, keepdims=True)),
        "--lambda distance=manhattan --pixels SCALE --output-is distance",
    ),
    "an_encoder": (encoder_of_any_size, "--image-size HEIGHTxWIDTH --pixels SCALE --compare KIND"),
    "a_linear_head": (
        lambda: siamese(subtract, keras.layers.Dense(1), rescale=False), "--pixels SCALE --output-is logit",
    ),
    "a_cosine": (
        lambda: siamese(cosine, keras.layers.Identity(), rescale=False),
        "--pixels SCALE --output-is cosine",
    ),
    "a_tanh": (
        lambda: siamese(subtract, keras.layers.Dense(1, activation="tanh"), rescale=False),
        "--pixels SCALE --output-is MEANING",
    ),
    "a_softmax": (
        lambda: siamese(subtract, keras.layers.Dense(2, activation="softmax"), rescale=False),
        "--pixels SCALE --match-column COLUMN",
    ),
    "two_lambdas": (two_lambdas, "--lambda half=KIND --lambda distance=l1 --pixels SCALE"),
    "an_own_class": (of_own_class, "--custom-object Weighted=module:attribute --pixels SCALE"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPEN)
def test_everything_that_is_open_is_asked_at_once(name, tmp_path, caplog):
    build, options = OPEN[name]
    build().save(tmp_path / "model.keras")
    with caplog.at_level(logging.INFO), pytest.raises(OpenQuestionError) as caught:
        load_model(ModelConfig(model=str(tmp_path / "model.keras")))
    asked = [argument for question in caught.value.questions for argument in question.option]
    assert asked == options.split()
    assert len(caught.value.problems) == options.count("--")
    assert "as --lambda says" not in caplog.text and "as --pixels says" not in caplog.text  # Nobody said it.


@pytest.mark.parametrize(
    ("build", "expected"), [(of_ten_outputs, r"shape \(n, 10\)"), (of_three_images, "3 inputs")], ids=["outputs", "inputs"]
)
def test_a_model_that_no_answer_makes_one_of_pairs_is_refused_without_questions(build, expected, tmp_path):
    build().save(tmp_path / "model.keras")
    with pytest.raises(PreflightError, match=expected) as caught:
        load_model(ModelConfig(model=str(tmp_path / "model.keras")))
    assert len(caught.value.problems) == 1


@pytest.fixture
def run(capsys):
    """Runs a command line, and returns its exit code and the lines of its standard error."""

    def run(*arguments):
        return main([*map(str, arguments)]), capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def job(demo, tmp_path):
    """The arguments of a job whose model leaves three things open."""
    lambda_distance(euclidean_lambda).save(tmp_path / "a model.h5")
    return ("--manifest", demo / "demo.csv", "--output", tmp_path / "out", "--model", tmp_path / "a model.h5")


def command_after(sentence, lines):
    """Returns the arguments of the command that follows a sentence, with a scale in place of SCALE."""
    (position,) = [number for number, line in enumerate(lines) if sentence in line]
    program, *arguments = shlex.split(lines[position + 1].replace("SCALE", "-1..1"))
    assert program == "batchverify"
    return arguments


@pytest.mark.slow
def test_the_whole_command_runs(job, run):
    code, lines = run(*job, "--threshold", "0.6")
    assert code == 2
    code, lines = run(*command_after("the whole command, with your own in place of SCALE", lines))
    assert code == 0, lines


@pytest.mark.slow
def test_the_doctors_command_keeps_the_answers_for_every_run(job, run, tmp_path):
    code, lines = run(*job, "--threshold", "0.6", "--batch-size", "16")
    arguments = command_after("say it once", lines)
    assert arguments[0] == "doctor" and "--manifest" not in arguments and "--output" not in arguments
    code, lines = run(*arguments)
    assert code in (0, 3), lines
    code, lines = run(*job)
    assert code == 0, lines


@pytest.mark.slow
def test_the_doctor_asks_as_the_job_does(job, run, tmp_path):
    model = job[-1]
    code, lines = run("doctor", "--model", model, "--write-sidecar")
    assert code == 2 and not any("say it once" in line for line in lines)
    arguments = command_after("the whole command", lines)
    assert run(*arguments)[0] in (0, 3)
    assert run(*job)[0] == 0


def test_a_program_started_as_a_module_is_named_so(job, run, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/batchverify/__main__.py"])
    _, lines = run(*job)
    assert any(line.startswith("  python -m batchverify --manifest") for line in lines)


@pytest.mark.parametrize(
    "given", [["--s3_secret_access_key=hush"], ["--s3_secret_access_key", "hush"], ["--s3-session-token=hush"]]
)
def test_no_key_is_printed(given, job, run):
    _, lines = run(*job, *given)
    assert "hush" not in "\n".join(lines)
    assert any("SECRET" in line and line.startswith("  batchverify --manifest") for line in lines)


@pytest.mark.slow
def test_beside_a_sidecar_none_is_suggested(job, run, tmp_path):
    (tmp_path / "a model.h5.batchverify.json").write_text('{"pixels": "0..1"}')
    _, lines = run(*job)
    assert any("the whole command" in line for line in lines) and not any("say it once" in line for line in lines)
