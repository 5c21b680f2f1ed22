"""Small jobs of every task."""

from tiny_tasks import prepared

from peftly import LoRA, TrainConfig, attach, train, trainable_parameters


def ready(task, architecture, task_base, tmp_path, rows=None):
    model, tokenizer, data = prepared(task, task_base(architecture), tmp_path, rows)
    attach(model, LoRA(rank=2), seed=1)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.double()
    return model, tokenizer, data


def trained(model, tokenizer, data, **settings):
    config = TrainConfig(**{"learning_rate": 0.02, "epochs": 2, "batch_size": 8} | settings)
    return train(model, data, config, tokenizer=tokenizer)
