"""Grades every sampler against closed-form posteriors."""
from __future__ import annotations
import math
import torch
from torch import Tensor
from suite.gaussian import GaussianMixture
from suite.testbed import Law, Problem

def moments(law: Law) -> tuple[Tensor, Tensor]:
    mean=law.mean_of()[0].double().flatten()
    return mean, law.covariance().diagonal().sqrt()

def grade(samples: Tensor, posteriors) -> dict:
    """samples (T,S,*shape)."""
    T,S=samples.shape[:2]
    x=samples.double().flatten(2)
    mean,var=x.mean(1),x.var(1)
    mu,sd=(torch.stack(m) for m in zip(*[moments(p) for p in posteriors]))
    excess=((mean-mu)/sd).square().mean()-(var/sd**2).mean()/S
    ratio=(var/sd**2).mean(0).sqrt().mean()
    k=(S+1)//20
    xs=x.sort(1).values
    lo,hi=xs[:,k-1],xs[:,S-k]
    cov=torch.stack([ _cdf(p,h)-_cdf(p,l) for p,l,h in zip(posteriors,lo,hi)]).mean()
    out={"mean_error":float(excess.clamp_min(0).sqrt()),"std_ratio":float(ratio),"coverage90":float(cov),"weight_error":None}
    if isinstance(posteriors[0],GaussianMixture):
        r=torch.stack([p.responsibilities(s) for p,s in zip(posteriors,samples)])  # T,S,K
        w=torch.stack([p.weights for p in posteriors])
        e=((r.mean(1)-w)**2-r.var(1)/S).mean(0).clamp_min(0).sqrt().sum()/2
        out["weight_error"]=float(e)
    return out

def _cdf(law,x):
    if isinstance(law,GaussianMixture):
        return sum(w*_cdf(c,x) for w,c in zip(law.weights,law.components))
    m,s=moments(law)
    return torch.special.ndtr((x-m)/s)
