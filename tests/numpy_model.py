"""The network in plain NumPy float64: the oracle of the Flax modules and of the train step."""

import numpy as np


def randomised(tree_leaves, structure, seed):
    """float32 values that leave no parameter at 0 or 1 and every variance positive."""
    generator = np.random.default_rng(seed)
    return structure.unflatten(
        [
            (0.3 + (-1) ** i * 0.2 * generator.random(leaf.shape)).astype(np.float32)
            for i, leaf in enumerate(tree_leaves)
        ]
    )


def conv(images, layer):
    """3×3 SAME convolution, tap by tap."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.asarray(layer["kernel"], np.float64)
    taps = [
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
    ]
    return sum(taps) + np.asarray(layer["bias"], np.float64)


def autoencoder(params, stats, images, *, train=False, momentum=0.99):
    """Embedding, reconstruction, logits, and the running statistics after the batch."""
    x = np.asarray(images, np.float64)
    new_stats = {"encoder": {}, "decoder": {}}

    def norm_relu(x, part, name):
        layer, running = params[part][name], stats[part][name]
        mean, var = running["mean"], running["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        new_stats[part][name] = {
            "mean": momentum * running["mean"] + (1 - momentum) * mean,
            "var": momentum * running["var"] + (1 - momentum) * var,
        }
        return np.maximum((x - mean) / np.sqrt(var + 1e-3) * layer["scale"] + layer["bias"], 0)

    for i in range(1, len(params["encoder"]) // 2 + 1):
        x = norm_relu(conv(x, params["encoder"][f"conv{i}"]), "encoder", f"norm{i}")
        x = np.stack([x[:, i::2, j::2] for i in range(2) for j in range(2)]).max(0)
    x = conv(x, params["encoder"]["bottleneck"])
    embedding = x.mean((1, 2))
    x = norm_relu(x, "decoder", "norm0")
    for i in range(1, len(params["decoder"]) // 2):
        x = conv(x.repeat(2, 1).repeat(2, 2), params["decoder"][f"conv{i}"])
        x = norm_relu(x, "decoder", f"norm{i}")
    reconstruction = 1 / (1 + np.exp(-conv(x, params["decoder"]["output"])))
    dense = params["head"]["dense"]
    return embedding, reconstruction, embedding @ dense["kernel"] + dense["bias"], new_stats


def mlp(params, stats, x, train):
    """`models.MLP` of two layers, and its running statistics after the batch."""
    x = x.astype(np.float64) @ params["dense1"]["kernel"]
    mean, var = (x.mean(0), x.var(0)) if train else (stats["norm1"]["mean"], stats["norm1"]["var"])
    after = {"mean": 0.9 * stats["norm1"]["mean"] + 0.1 * mean}
    after["var"] = 0.9 * stats["norm1"]["var"] + 0.1 * var
    x = (x - mean) / np.sqrt(var + 1e-5) * params["norm1"]["scale"] + params["norm1"]["bias"]
    x = np.maximum(x, 0) @ params["dense2"]["kernel"] + params["dense2"]["bias"]
    return x, {"norm1": after}
