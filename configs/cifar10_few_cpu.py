"""CIFAR-10 with 1 % of the labels on two CPU cores: EMP-SSL, its labels and FreeMatch.

Command:   retrieval-jax run --config=cifar10_few_cpu --workdir=runs/cifar10_few_cpu
Hardware:  2 CPU cores
Time:      44 min of training, 51 in all
Score:     NMI 0.430, precision@5 0.514 in the cluster (experiments/few_labels)
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 few labels, CPU"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.data.labels_per_class = 57  # of some 4,560 in the fit set
    c.objective.reconstruction.weight = 0.0
    c.objective.emp_ssl.weight = 1.0
    # EMP-SSL's loss is some 200 for its weight of the agreement.
    c.objective.classification.weight = 50.0
    c.objective.freematch.weight = 100.0
    c.model.encoder.name = "small_resnet"
    c.model.encoder.small_resnet.blocks = (0, 0, 0)
    weak = c.views.main  # whose likeliest class is the label of the other views
    weak.crop.size, weak.crop.scale = 24, (0.5, 1.0)
    weak.flip.probability = 0.5
    with c.unlocked():
        c.views.strong = config.view()
    crops = c.views.strong
    crops.count = 7
    crops.crop.size, crops.crop.scale = 24, (0.2, 1.0)
    crops.flip.probability = 0.5
    crops.jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    crops.grayscale.probability = 0.2
    c.training.batch_size = 64
    c.training.labelled_per_batch = 16
    c.training.epochs = 12  # of 712 steps
    c.optimizer.learning_rate = 3e-3
    c.optimizer.decay = "cosine"
    c.embedding.layer = "probabilities"
    c.embedding.crops = 24
    c.embedding.precise_batchnorm = True
    c.embedding.normalize = True
    c.report.tsne_points = 10000
    return c
