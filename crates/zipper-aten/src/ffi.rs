//! The calls into the shim.

#![expect(unsafe_code, reason = "calls the C interface of the shim")]

use std::ffi::{CStr, c_char, c_void};

use tch::{TchError, Tensor};

use crate::{AdamWParam, AdamWSettings};

unsafe extern "C" {
    fn zipper_aten_string_free(string: *mut c_char);
    fn zipper_aten_mul(tensors: *const *mut c_void, count: usize, factor: f64) -> *mut c_char;
    fn zipper_aten_adamw(
        params: *const *mut c_void,
        grads: *const *mut c_void,
        exp_avgs: *const *mut c_void,
        exp_avg_sqs: *const *mut c_void,
        steps: *const *mut c_void,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
}

pub(crate) fn mul(tensors: &[Tensor], factor: f64) -> Result<(), TchError> {
    let tensors: Vec<*mut c_void> = tensors.iter().map(pointer).collect();
    // SAFETY: the list and its tensors live during the call, which changes nothing but their elements.
    checked(unsafe { zipper_aten_mul(tensors.as_ptr(), tensors.len(), factor) })
}

pub(crate) fn adamw(params: &[AdamWParam], settings: AdamWSettings) -> Result<(), TchError> {
    let list = |of: fn(&AdamWParam) -> &Tensor| -> Vec<*mut c_void> {
        params.iter().map(|param| pointer(of(param))).collect()
    };
    let values = list(|param| &param.value);
    let grads = list(|param| &param.grad);
    let exp_avgs = list(|param| &param.exp_avg);
    let exp_avg_sqs = list(|param| &param.exp_avg_sq);
    let steps = list(|param| &param.step);
    let [beta1, beta2] = settings.betas;
    // SAFETY: the lists are of `params.len()` tensors each, and live during the call, which changes nothing but elements.
    checked(unsafe {
        zipper_aten_adamw(
            values.as_ptr(),
            grads.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            steps.as_ptr(),
            params.len(),
            settings.lr,
            beta1,
            beta2,
            settings.weight_decay,
            settings.eps,
        )
    })
}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

fn checked(message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: what is not null is a NUL-terminated string that the shim made for us; it is freed once, after copying.
    let copied = unsafe {
        let copied = CStr::from_ptr(message).to_string_lossy().into_owned();
        zipper_aten_string_free(message);
        copied
    };
    Err(TchError::Torch(copied))
}
