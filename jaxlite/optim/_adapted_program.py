"""A model's program, and at which of its contractions a frozen leaf is taken as it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxlite import trees
from jaxlite.contract import Model, Params, State
from jaxlite.graph import provenance, routes, walk
from jaxlite.graph.model import model_tags
from jaxlite.optim._low_rank import Adapted, Here
from jaxlite.optim._stored import Form


class Seen:
  """A program of the inner model, and what it does with the leaves of interest.

  Attributes:
    closed, plan, shapes: the program, read; the structure of its results.
    sites: by name, what is done at a contraction in place of it.
    apart: by path, None where every use of the leaf is such a contraction, else why not.
    looked_up: the leaves that are read row by row.
  """

  def __init__(self, model: Model, args: Any, train: bool, adapted: Mapping[str, Adapted], forms: Mapping[str, Form]):
    def forward(params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
      return model.apply(params, state, inputs, train=train, key=key, step=step)

    self.closed, self.shapes = jax.make_jaxpr(forward, return_shape=True)(*args)
    self.plan = provenance.read(self.closed, model_tags(*args))
    self.leaves = trees.paths(args[0])
    self.rest = sum(len(jax.tree.leaves(one)) for one in args[1:])
    self.eqns = _site_eqns(self.closed, self.plan)
    self(adapted, forms)

  def __call__(self, adapted: Mapping[str, Adapted], forms: Mapping[str, Form]) -> Seen:
    """Decides for other leaves, on the same program."""
    paths = {*adapted, *forms}
    asked = [path if path in paths or not paths else None for path in self.leaves]
    found = routes.read(self.closed, self.plan, [*asked, *[None] * self.rest])
    reasons: dict[str, str | None] = {path: found.others.get(path) for path in sorted(paths)}
    sites = {}
    for site_name, route in found.sites.items():
      eqn, site = self.eqns[site_name]
      known = adapted.get(route.path), forms.get(route.path)
      here = None
      if any(one is not None and one.matrix.inside(route.depth) is not None for one in known):
        here = Here.at(site, eqn, route, known[1], known[0])
      if here is None:
        reasons[route.path] = reasons.get(route.path) or 'a product whose factors cannot be taken apart'
      else:
        sites[site_name] = (here, route.path)
    used = {path for _, path in sites.values()}
    self.apart = {path: why or (None if path in used else 'no product takes it') for path, why in reasons.items()}
    self.sites = {site: pair for site, pair in sites.items() if self.apart[pair[1]] is None}
    self.looked_up = {path for path, why in found.others.items() if why in ('gather', 'take')}
    return self


def _site_eqns(jaxpr: Any, plan: provenance.Plan) -> dict[str, Any]:
  """The equation of each site that may be rewritten, by name; of branches that share one, the first."""
  found: dict[str, Any] = {}
  bare, _ = walk.opened(jaxpr)
  for index, site in plan.sites.items():
    if not site.why_not:
      found.setdefault(site.name, (bare.eqns[index], site))
  for index, plans in plan.inner.items():
    eqn = bare.eqns[index]
    bodies = _bodies_in_order(eqn)
    for body, inner in zip(bodies, plans, strict=True):
      for name, pair in _site_eqns(body, inner).items():
        found.setdefault(name, pair)
  return found


def _bodies_in_order(eqn: Any) -> list[Any]:
  name = eqn.primitive.name
  if name == 'while':
    return [eqn.params['cond_jaxpr'], eqn.params['body_jaxpr']]
  if name == 'cond':
    return list(eqn.params['branches'])
  return [eqn.params['jaxpr' if name == 'scan' else walk.CALLS[name]]]
