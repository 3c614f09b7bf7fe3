"""Parameters that follow a move of the latent space: what is seen is as likely as before, and the Jacobian is right."""

import pytest
import torch
from dense import normal

from ppgen.expecting import observed_given
from ppgen.families.moved import Move
from ppgen.models import LDS, SLDS

N, T = 3, 6
MODELS = {
    "lds": lambda: LDS(2, 3, inputs=1),
    "lds-full": lambda: LDS(3, 2, covariance="full"),
    "slds": lambda: SLDS(2, 2, 3),
    "slds-both": lambda: SLDS(3, 2, 3, switching="both", inputs=2),
    "slds-recurrent": lambda: SLDS(3, 2, 3, recurrent=True),
}


@pytest.fixture(params=MODELS)
def drawn(request):
    """A model, one draw of its parameters, and two moves: a stretch with a shift, and none."""
    model = MODELS[request.param]()
    theta = {}
    for factor in model.natural_prior().values():
        theta |= {site: value[0] for site, value in factor.family.sample(factor.eta, 1).items()}
    v = normal(model.latent)
    return model, theta, Move(v / v.norm(), torch.tensor([0.4, 0.0]).double(), torch.tensor([-0.7, 0.0]).double())


def joint(model, theta, x, u, values):
    s = {name: factor.family.statistic(theta) for name, factor in model.natural_prior().items()}
    (found,) = observed_given(model, s, x, u).values()
    return found.distribution.joint(x, values).sum()


def test_what_is_seen_stays_as_likely(drawn):
    model, theta, move = drawn
    x, u = normal(N, T, model.features), normal(N, T, model.inputs) if model.inputs else None
    x[0, 2, 0] = torch.nan
    h, found = normal(N, T, model.latent), model.moved(theta, move)[0]
    for number, after in enumerate(move.of(h)):
        values = {"h": h, "z": torch.randint(2, (N, T))} if isinstance(model, SLDS) else {"h": h}
        change = joint(
            model, theta | {site: value[number] for site, value in found.items()}, x, u, {**values, "h": after}
        )
        change = change - joint(model, theta, x, u, values)
        first = (h[:, 0].square().sum() - after[:, 0].square().sum()) / 2
        torch.testing.assert_close(change, first - N * (T - 1) * move.stretch[number], rtol=0, atol=1e-8)


def test_the_jacobian_is_that_of_the_map(drawn):
    """By automatic differentiation, over the entries that are free."""
    model, theta, move = drawn
    sites = [site for site in model.moved(theta, move)[0] if site in theta]
    free = {site: torch.ones_like(theta[site]).bool() for site in sites}
    lower = next(site for site in sites if site.startswith("dynamics_precision"))
    free[lower] = free[lower].tril()

    def mapped(flat):
        own, begun = dict(theta), 0
        for site in sites:
            count = int(free[site].sum())
            own[site] = torch.zeros_like(theta[site]).masked_scatter(free[site], flat[begun : begun + count])
            begun += count
        found = model.moved(own, move)[0]
        return torch.cat([found[site][0][free[site]] for site in sites])

    start = torch.cat([theta[site][free[site]] for site in sites])
    matrix = torch.autograd.functional.jacobian(mapped, start)
    jacobian = model.moved(theta, move)[1]
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, jacobian[0])
    assert jacobian[1].abs() < 1e-12
