//! Where networks run and in which numbers they compute, as plain data. `nets` turns them into candle's types.

crate::names! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Device {
        Cpu = "cpu",
        /// The CUDA device of this number; the first is 0
        Cuda(usize = 0) = "cuda[:N]" | "gpu",
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
        assert_eq!("gpu".parse(), Ok(Device::Cuda(0)));
        for wrong in ["mps", "cpu:0", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
