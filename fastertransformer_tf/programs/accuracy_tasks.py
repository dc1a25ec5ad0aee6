"""What accuracy_report measures a model on: MRPC's dev set and a file of SQuAD."""

from __future__ import annotations

import abc
import datetime
import functools
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from fastertransformer_tf.checkpoints import reading
from fastertransformer_tf.data import (
    glue,
    glue_features,
    squad_answers,
    squad_files,
    squad_scores,
    squad_windows,
)
from fastertransformer_tf.errors import UserError
from fastertransformer_tf.files import bert_config
from fastertransformer_tf.models import modeling
from fastertransformer_tf.programs import (
    batch_runs,
    checked_inputs,
    classification,
    inference,
    question_answering,
)
from fastertransformer_tf.programs.accuracy_cells import Measurement
from fastertransformer_tf.training import settings

_tf1 = tf.compat.v1


class Task(abc.ABC):
    """A task with its data and the files of its model.

    Attributes:
      name: mrpc or squad, the first part of its flags.
      metrics: Name of a metric to how the table calls it; the first is the one that is plotted.
      config: The BertConfig.
    """

    name: str
    metrics: Mapping[str, str]

    def __init__(
        self, folder: str, do_lower_case: bool, max_seq_length: int, most_examples: int
    ) -> None:
        """Reads the model's configuration and vocabulary.

        Args:
          folder: Holds bert_config.json and vocab.txt.
          do_lower_case: As the model was trained.
          max_seq_length: Tokens of a sequence, S.
          most_examples: How many pairs or questions count, the first; 0 for all.

        Raises:
          FileNotFoundError: A file is not there.
          UserError: One is not as expected, or the model has not so many positions.
        """
        self._config_file, self._vocab_file = (
            os.path.join(folder, name) for name in ("bert_config.json", "vocab.txt")
        )
        for path in (self._config_file, self._vocab_file):
            if not os.path.isfile(path):
                raise FileNotFoundError(f"--{self.name}_model={folder}: {path} not found")
        self._max_seq_length, self._most = max_seq_length, most_examples
        self._do_lower_case = do_lower_case
        self.config = checked_inputs.load_config(
            self._config_file, max_seq_length, modeling.EncoderOptions()
        )
        checked_inputs.check_segments(self.config, self._config_file)
        self._tokenizer = checked_inputs.make_tokenizer(
            self._vocab_file, do_lower_case, None, self.config
        )

    def check(self, source: reading.Checkpoint, int8_mode: int) -> None:
        """Refuses a checkpoint that the model cannot be restored from, as far as its index tells.

        Raises:
          UserError: It is quantized with int8_mode 0, or not with another, or of other sizes.
        """
        checked_inputs.check_quantization(source, int8_mode)
        bert_config.check_embeddings(
            vars(self.config), source.shapes, self._config_file, source.path
        )

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What determines the results beside checkpoint and encoder, for JSON."""
        return {
            "data": settings.file_hash(self._data_file),
            "vocabulary": settings.file_hash(self._vocab_file),
            "config": dict(sorted(vars(self.config).items())),
            "do_lower_case": self._do_lower_case,
            "max_seq_length": self._max_seq_length,
            "examples": self.num_examples,
            **self._own_settings(),
        }

    def _own_settings(self) -> dict[str, Any]:
        """What a task has beside what all have."""
        return {}

    @property
    @abc.abstractmethod
    def _data_file(self) -> str:
        """The file of pairs or questions."""

    @property
    @abc.abstractmethod
    def num_examples(self) -> int:
        """How many pairs or questions count."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """Says in a few words what is measured."""

    @abc.abstractmethod
    def measure(
        self, source: reading.Checkpoint, options: modeling.EncoderOptions, batch_size: int
    ) -> Measurement:
        """Evaluates a checkpoint.

        Args:
          source: The checkpoint.
          options: How the encoder is built.
          batch_size: Examples or windows of a batch.

        Raises:
          UserError: It does not fit the model, or its outputs are not finite.
        """


class Mrpc(Task):
    """MRPC: accuracy and F1 (of the class 1) of dev.tsv, as run_classifier_wrap --do_eval."""

    name = "mrpc"
    metrics = {"accuracy": "accuracy", "f1": "F1"}

    def __init__(self, data_dir: str, *model: Any) -> None:
        """Reads the pairs; see `Task` for the other arguments."""
        super().__init__(*model)
        self._task = glue.TASKS["mrpc"]
        self._data_dir = data_dir
        examples = self._task.examples(data_dir, glue.DEV)
        self._examples = examples[: self._most or None]
        self._all = len(examples)

    @property
    def _data_file(self) -> str:
        return os.path.join(self._data_dir, self._task.splits[glue.DEV].file)

    @property
    def num_examples(self) -> int:
        """How many pairs count."""
        return len(self._examples)

    @property
    def title(self) -> str:
        """Names data and length."""
        return (
            f"MRPC: {_part(self.num_examples, self._all, 'pairs')} of dev.tsv, "
            f"{self._max_seq_length} tokens"
        )

    @functools.cached_property
    def _features(self) -> dict[str, np.ndarray]:
        return glue_features.make_features(
            self._examples, self._task.get_labels(), self._max_seq_length, self._tokenizer
        )

    def measure(
        self, source: reading.Checkpoint, options: modeling.EncoderOptions, batch_size: int
    ) -> Measurement:
        """Evaluates a checkpoint; see `Task.measure`."""
        num_labels = len(self._task.labels)
        with classification.Classifier(self.config, num_labels, source, options) as model:
            run = model.run(self._features, batch_size, "mrpc")
            logits = run.outputs["logits"].astype(np.float32)
            if not np.isfinite(logits).all():
                raise UserError(f"checkpoint {source.path}: logits are not finite")
            found = classification.evaluate(self._task, self._features["label_ids"], run)
            metrics = {name: float(found[f"eval_{name}"]) for name in self.metrics}
            return _measurement(metrics, run, model)


class Squad(Task):
    """SQuAD v1.1: exact match and F1, as run_squad_wrap --do_predict and squad_evaluate_v1_1."""

    name = "squad"
    metrics = {"f1": "F1", "exact_match": "exact match"}

    def __init__(self, file: str, doc_stride: int, max_query_length: int, *model: Any) -> None:
        """Reads the questions; see `Task` for the arguments after these three."""
        super().__init__(*model)
        self._file = file
        self._options = squad_files.SquadOptions(
            max_seq_length=self._max_seq_length,
            doc_stride=doc_stride,
            max_query_length=max_query_length,
            do_lower_case=self._do_lower_case,
        )
        questions, self._dropped = squad_files.read_examples(file, self._options, is_training=False)
        self._questions = questions[: self._most or None]
        self._all = len(questions)
        self._articles = squad_scores.read_articles(file)
        # Before hours of work: the scores need an answer of every question.
        squad_scores.evaluate(self._chosen_articles, {q.qas_id: "" for q in self._questions})

    @property
    def _data_file(self) -> str:
        return self._file

    @property
    def num_examples(self) -> int:
        """How many questions count."""
        return len(self._questions)

    @property
    def title(self) -> str:
        """Names data and length."""
        return (
            f"SQuAD: {_part(self.num_examples, self._all, 'questions')} of "
            f"{os.path.basename(self._file)}, windows of {self._max_seq_length} tokens"
        )

    def _own_settings(self) -> dict[str, Any]:
        return {name: getattr(self._options, name) for name in ("doc_stride", "max_query_length")}

    @functools.cached_property
    def _chosen_articles(self) -> list[Any]:
        """The articles with those of their questions that count."""
        chosen = {question.qas_id for question in self._questions}
        articles = []
        for article in self._articles:
            paragraphs = [
                {"qas": [qa for qa in paragraph["qas"] if qa["id"] in chosen]}
                for paragraph in article["paragraphs"]
            ]
            articles.append({"paragraphs": paragraphs})
        return articles

    @functools.cached_property
    def _data(self) -> squad_windows.SquadData:
        data = squad_windows.make_windows(
            self._questions, self._dropped, self._tokenizer, self._options, is_training=False
        )
        if not data.windows:
            raise UserError(f"{self._file}: all paragraphs are blank, expected words in one")
        return data

    def measure(
        self, source: reading.Checkpoint, options: modeling.EncoderOptions, batch_size: int
    ) -> Measurement:
        """Evaluates a checkpoint; see `Task.measure`."""
        with question_answering.QuestionAnswerer(self.config, source, options) as model:
            run = model.run(self._data.arrays, batch_size, "squad")
            with tempfile.TemporaryDirectory() as folder:
                answers = squad_answers.write_predictions(
                    self._data,
                    run.outputs["start_logits"],
                    run.outputs["end_logits"],
                    self._options,
                    folder,
                )
            return _measurement(squad_scores.evaluate(self._chosen_articles, answers), run, model)


def _part(count: int, total: int, what: str) -> str:
    """`all 408 pairs`, or `the first 100 of 408 pairs`."""
    return f"all {total} {what}" if count == total else f"the first {count} of {total} {what}"


def _measurement(
    metrics: Mapping[str, float], run: batch_runs.BatchRun, model: inference.Model
) -> Measurement:
    variables = model.graph.get_collection(_tf1.GraphKeys.GLOBAL_VARIABLES)
    return Measurement(
        metrics=dict(metrics),
        num_examples=run.num_examples,
        examples_per_second=run.examples_per_second,
        ms_per_batch=run.ms_per_batch,
        checkpoint_bytes=sum(v.shape.num_elements() * v.dtype.size for v in variables),
        measured=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
