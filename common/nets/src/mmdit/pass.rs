//! A transformer's backward pass block by block (gradient checkpointing). The forward pass keeps only the input of each block, and
//! the backward pass computes the block once more.

use anyhow::Result;
use candle_core::{Tensor, Var, backprop::GradStore};
use ops::accumulate_store;

use super::{MMDiT, Shared, Tokens, squares};
use crate::conditioning::Conditioning;
use crate::pass::{Network, Pass, backward_from, gradient};

/// Gradients that are added up.
#[derive(Default)]
struct Sum(Option<Tensor>);

impl Sum {
    fn add(&mut self, more: Tensor) -> Result<()> {
        self.0 = Some(match self.0.take() {
            Some(sum) => (sum + more)?,
            None => more,
        });
        Ok(())
    }
}

/// The tokens as variables.
struct Vars {
    image: Var,
    text: Option<Var>,
}

impl Vars {
    fn of(tokens: &Tokens) -> Result<Self> {
        Ok(Self {
            image: Var::from_tensor(&tokens.image)?,
            text: tokens.text.as_ref().map(Var::from_tensor).transpose()?,
        })
    }

    fn tokens(&self) -> Tokens {
        Tokens { image: self.image.as_tensor().clone(), text: self.text.as_ref().map(|t| t.as_tensor().clone()) }
    }

    fn gradients(&self, store: &mut GradStore) -> Result<Tokens> {
        let text = self.text.as_ref().map(|text| gradient(store, text)).transpose()?;
        Ok(Tokens { image: gradient(store, &self.image)?, text })
    }
}

/// The backward pass from the output `y` of a block, whose gradient is `g`.
fn backward_of(y: Tokens, g: &Tokens) -> Result<GradStore> {
    let mut sum = (&y.image * &g.image)?.sum_all()?;
    if let (Some(y), Some(g)) = (&y.text, &g.text) {
        sum = (sum + (y * g)?.sum_all()?)?;
    }
    Ok(sum.backward()?)
}

impl Network for MMDiT {
    fn predict(&self, x: &Tensor, t: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        self.forward(x, t, conditioning)
    }

    fn forward_in_pieces<'a>(
        &'a self,
        x: &'a Tensor,
        t: &'a [f32],
        conditioning: &'a Conditioning,
    ) -> Result<Pass<'a>> {
        let states = &conditioning.states;
        let temb = self.embedding.forward(x, t, conditioning)?;
        // With adapters inside the blocks alone, nothing before the first block is trained.
        let trains_temb = temb.track_op();
        let shared = self.config.shared(x, temb.detach(), states)?;
        let [image, text] = self.enter.forward(x, states)?;
        let mut tokens = Tokens { image: image.detach(), text: Some(text.detach()) };
        drop((temb, image, text));
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let Tokens { image, text } = block.forward(&tokens, &shared)?;
            let next = Tokens { image: image.detach(), text: text.map(|text| text.detach()) };
            inputs.push(std::mem::replace(&mut tokens, next));
        }
        let size = squares(x)?;
        let prediction = self.leave.forward(&tokens.image, &shared.temb, size)?.detach();

        let backward = move |gy: &Tensor| -> Result<()> {
            let mut by_temb = Sum::default();
            let temb = Var::from_tensor(&shared.temb)?;
            let seen = if trains_temb { temb.as_tensor().clone() } else { shared.temb.clone() };
            let shared = Shared { temb: seen, ..shared };
            let mut collect = |store: &mut GradStore| match trains_temb {
                true => by_temb.add(gradient(store, &temb)?),
                false => Ok(()),
            };

            let last = Var::from_tensor(&tokens.image)?;
            let mut store = backward_from(&self.leave.forward(&last, &shared.temb, size)?, gy)?;
            let mut g = Tokens { image: gradient(&mut store, &last)?, text: None };
            collect(&mut store)?;
            accumulate_store(store)?;
            drop((tokens, last));
            for (block, input) in self.blocks.iter().zip(inputs).rev() {
                let vars = Vars::of(&input)?;
                let mut store = backward_of(block.forward(&vars.tokens(), &shared)?, &g)?;
                g = vars.gradients(&mut store)?;
                collect(&mut store)?;
                accumulate_store(store)?;
            }
            let [image, text] = self.enter.forward(x, states)?;
            if image.track_op() || text.track_op() {
                accumulate_store(backward_of(Tokens { image, text: Some(text) }, &g)?)?;
            }
            let temb = self.embedding.forward(x, t, conditioning)?;
            match by_temb.0.filter(|_| temb.track_op()) {
                Some(g) => Ok(accumulate_store(backward_from(&temb, &g)?)?),
                None => Ok(()),
            }
        };
        Ok(Pass::new(prediction, backward))
    }
}
