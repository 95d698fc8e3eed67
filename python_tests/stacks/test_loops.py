"""Training loops of other packages run a method's loss on its prepared model; each gives the steps of a plain loop."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader

import nft_ext as nft

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = [pytest.mark.stacks, pytest.mark.filterwarnings("ignore:sigma. the paper's range")]

NVM = nft.NVMDevice()
METHOD = nft.methods.OVF(sigma=0.1, beta=1e-2, feedbacks=2, a_b=1 / 3)
RATE, BATCH, EPOCHS = 0.05, 8, 3


def classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def items(count=32, seed=1):
    """Sentences of six tokens, labelled by whether the first token is below 10."""
    ids = torch.randint(20, (count, 6), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "attention_mask": torch.ones(6).long(), "labels": (row[0] < 10).long()} for row in ids]


def loader():
    return DataLoader(items(), batch_size=BATCH)


class Seeded:
    """The method's loss; step n has chips of its own, whatever drew random numbers before, as loaders do."""

    def __init__(self):
        self.steps = 0

    def __call__(self, model, batch):
        torch.manual_seed(100 + self.steps)
        self.steps += 1
        return METHOD.loss(model, batch)


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)


def plain_loop(prepared, epochs=EPOCHS):
    """The loop that the others are compared with. Returns the losses."""
    prepared.train()
    optimizer, seeded, losses = sgd(prepared), Seeded(), []
    for batch in list(loader()) * epochs:
        optimizer.zero_grad()
        loss = seeded(prepared, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(found, expected, start):
    """To rounding, and both moved."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert max((expected[name] - start[name]).abs().max() for name in expected) > 1e-3


@pytest.fixture(scope="module")
def reference():
    """The plain loop's losses and weights, and the weights that it began with."""
    prepared = METHOD.prepare(classifier(), NVM)
    start = weights(prepared)
    return plain_loop(prepared), weights(prepared), start


def test_a_plain_loop_lowers_the_loss_and_its_result_is_plain(reference):
    losses, trained, start = reference
    assert sum(losses[-4:]) < sum(losses[:4])
    prepared = METHOD.prepare(classifier(), NVM)
    plain_loop(prepared)
    assert_same(weights(METHOD.finish(prepared)), trained, start)


class Trainer(transformers.Trainer):
    """OVF in compute_loss. Evaluation over chips: the accuracy of each chip, its mean and its interval."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seeded = Seeded()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.seeded(model, inputs)
        return (loss, model(**inputs)) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        batches = list(self.get_eval_dataloader(eval_dataset))

        def accuracy(model):
            hits = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
            return float(torch.cat(hits).double().mean())

        figure = nft.over_chips(self.model, accuracy, runs=8, seed=0, progress=False).metrics["value"]
        found = {f"{metric_key_prefix}_accuracy": figure.mean, f"{metric_key_prefix}_ci95": figure.ci95}
        self.log(found)
        return found


def arguments(folder, **options):
    return transformers.TrainingArguments(
        str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=RATE, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[], disable_tqdm=True, save_strategy="no",
        use_cpu=True, **options,
    )  # fmt: skip


class InOrder(Trainer):
    """The batches of the plain loop."""

    def get_train_dataloader(self):
        return loader()


def test_the_trainer_of_transformers_takes_the_steps_of_a_plain_loop(tmp_path, reference):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which is not installed")
    trainer = InOrder(METHOD.prepare(classifier(), NVM), arguments(tmp_path), train_dataset=items())
    trainer.train()
    assert_same(weights(trainer.model), *reference[1:])
    plain = METHOD.finish(trainer.model)
    assert not nft.noisy_layers(plain)


def test_the_trainer_evaluates_over_chips(tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate, which is not installed")
    options = arguments(tmp_path, eval_strategy="epoch")
    prepared = METHOD.prepare(classifier(), NVM)
    trainer = Trainer(prepared, options, train_dataset=items(), eval_dataset=items(40, seed=2))
    trainer.train()
    logged = [row for row in trainer.state.log_history if "eval_accuracy" in row]
    assert len(logged) == EPOCHS
    ids = {key: torch.stack([item[key] for item in items(40, seed=2)]) for key in items(1)[0]}
    prepared.eval()
    by_hand = []
    with torch.no_grad():
        for draw in range(8):
            with nft.chips(prepared, seed=0, draws=[draw]):
                by_hand.append((prepared(**ids).logits.argmax(-1) == ids["labels"]).double().mean())
    assert logged[-1]["eval_accuracy"] == pytest.approx(float(torch.stack(by_hand).mean()), abs=1e-12)
    assert logged[-1]["eval_ci95"] >= 0.0


def test_accelerate_takes_the_steps_of_a_plain_loop(reference):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    prepared = METHOD.prepare(classifier(), NVM)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(prepared, sgd(prepared))
    model.train()
    seeded = Seeded()
    for batch in list(loader()) * EPOCHS:
        optimizer.zero_grad()
        accelerator.backward(seeded(model, batch))
        optimizer.step()
    found = accelerator.unwrap_model(model)
    assert_same(weights(found), *reference[1:])
    assert not nft.noisy_layers(METHOD.finish(found))


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_lightning_takes_the_steps_of_a_plain_loop(package, tmp_path, reference):
    lightning = pytest.importorskip(package, reason=f"{package} is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.seeded = METHOD.prepare(classifier(), NVM), Seeded()

        def training_step(self, batch, index):
            return self.seeded(self.network, batch)

        def validation_step(self, batch, index):
            with nft.chips(self.network, seed=0, draws=[0]):
                logits = self.network(**batch).logits
            self.log("val_accuracy", (logits.argmax(-1) == batch["labels"]).double().mean())

        def configure_optimizers(self):
            return sgd(self.network)

    module = Module()
    quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers of the loader
        trainer.fit(module, loader())
    assert_same(weights(module.network), *reference[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (validated,) = trainer.validate(module, DataLoader(items(40, seed=2), batch_size=40), verbose=False)
    ids = {key: torch.stack([item[key] for item in items(40, seed=2)]) for key in items(1)[0]}
    with torch.no_grad(), nft.chips(module.network, seed=0, draws=[0]):
        expected = (module.network(**ids).logits.argmax(-1) == ids["labels"]).double().mean()
    assert validated["val_accuracy"] == pytest.approx(float(expected), abs=1e-6)
    assert not nft.noisy_layers(METHOD.finish(module.network))


# ---- adapters of peft on a network of transformers

ADAPTERS = ["*.lora_A.*", "*.lora_B.*"]


@pytest.mark.parametrize("on_crossbars", ["base", "adapters"])
def test_adapters_of_peft_are_trained_on_either_side(on_crossbars):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], modules_to_save=["classifier"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(classifier(), config)
    choice = {"exclude": ADAPTERS} if on_crossbars == "base" else {"include": ADAPTERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that matrices stay digital, as asked
        nft.convert(adapted, nft.NVMDevice(sigma=0.1), inplace=True, **choice)
    noisy = nft.noisy_layers(adapted)
    assert noisy and all(("lora_" in name) == (on_crossbars == "adapters") for name in noisy)
    start = weights(adapted)
    losses = plain_loop(adapted, epochs=6)
    moved = {name for name, value in weights(adapted).items() if not torch.equal(value, start[name])}
    assert moved == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name for name in moved if "lora_" in name} == {name for name in start if "lora_" in name}
    assert sum(losses[-4:]) < sum(losses[:4])
    plain = nft.restore(adapted)
    assert not nft.noisy_layers(plain)
    merged = plain.merge_and_unload().eval()
    batch = next(iter(loader()))
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, plain.eval()(**batch).logits, rtol=1e-4, atol=1e-5)
