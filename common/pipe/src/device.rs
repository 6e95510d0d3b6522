//! Where networks run and in which numbers they compute, as plain data. `nets` turns them into candle's types.

use std::{fmt, str::FromStr};

use crate::names::{Form, Names};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl Names for Device {
    const FORMS: &'static [Form] = &[
        Form { form: "cpu", aliases: &[], help: "" },
        Form { form: "cuda", aliases: &[], help: "The first CUDA device" },
        Form { form: "cuda:N", aliases: &[], help: "The CUDA device of this number, from 0" },
    ];

    fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
        }
    }
}

impl FromStr for Device {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", n)) => {
                n.parse().map(Device::Cuda).map_err(|_| format!("'{n}' is not the number of a CUDA device"))
            }
            _ => Err(format!("'{text}' is not a device; expected {}", Self::list())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

crate::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Dtype {
        F32 = "f32",
        Bf16 = "bf16",
        F16 = "f16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_printed() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["gpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
