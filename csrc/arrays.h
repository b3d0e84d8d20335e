// Contiguous arrays on the CPU as arguments of the kernels, read flat whatever their shape.
//
// A torch.Tensor or Parameter is read through DLPack's exchange table, which torch.Tensor carries: some ten nanoseconds
// an array, where __dlpack__ takes three microseconds, and one token in generation is a thousand arrays. Nothing is
// owned then: the caller's arguments outlive the call. Everything else goes through nanobind's own arrays. Source:
// dlpack.h 1.3, DLPackExchangeAPI, whose layout is part of its contract.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <type_traits>
#include <utility>

namespace lorasmith {

struct ExchangeTable {
    uint32_t major, minor;
    ExchangeTable* older;
    void *allocate, *managed_from_python, *managed_to_python;
    // 0, or -1 with an exception set
    int (*from_python)(void* tensor, nanobind::dlpack::dltensor* out);
    void* current_stream;
};

// The types that are read through the table, found once when the module is loaded; none where torch has no table.
struct TorchTensors {
    void find() {
        const nanobind::object torch = nanobind::module_::import_("torch");
        const nanobind::object type = torch.attr("Tensor");
        const nanobind::object capsule = nanobind::getattr(type, "__dlpack_c_exchange_api__", nanobind::none());
        if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return;
        const auto* found = static_cast<ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (found->major != 1) return;
        tensor = type.ptr();
        parameter = torch.attr("nn").attr("Parameter").ptr();
        table = found;
    }

    // Whether array was filled; a subclass may hold its values elsewhere or nowhere.
    bool read(PyObject* object, nanobind::dlpack::dltensor* array) const {
        const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
        if (table == nullptr || (type != tensor && type != parameter)) return false;
        if (table->from_python(object, array) == 0) return true;
        PyErr_Clear();
        return false;
    }

    const PyObject *tensor = nullptr, *parameter = nullptr;
    const ExchangeTable* table = nullptr;
};

inline TorchTensors torch_tensors;

// T is const where the kernel only reads, and void for values whose type the kernel looks up.
template <class T>
class Flat {
  public:
    using Value = std::remove_const_t<T>;
    using Access = std::conditional_t<std::is_const_v<T>, nanobind::ro, nanobind::detail::unused>;
    using Type = std::conditional_t<std::is_void_v<T>, Access, T>;
    using Owned = nanobind::ndarray<Type, nanobind::c_contig, nanobind::device::cpu>;

    T* data() const { return data_; }
    int64_t size() const { return size_; }
    nanobind::dlpack::dtype dtype() const { return dtype_; }

    // Whether array is a contiguous one of this type on the CPU; if so it is this one's.
    bool take(const nanobind::dlpack::dltensor& array) {
        if (array.device.device_type != nanobind::device::cpu::value) return false;
        if constexpr (!std::is_void_v<T>) {
            if (array.dtype != nanobind::dtype<Value>()) return false;
        }
        size_ = 1;
        bool whole = true;
        for (int32_t axis = array.ndim - 1; axis >= 0; --axis) {
            whole &= array.shape[axis] == 1 || array.strides == nullptr || array.strides[axis] == size_;
            size_ *= array.shape[axis];
        }
        // a tensor without memory has values only inside torch
        if (size_ > 0 && (!whole || array.data == nullptr)) return false;
        data_ = reinterpret_cast<T*>(static_cast<char*>(array.data) + array.byte_offset);
        dtype_ = array.dtype;
        return true;
    }

    void keep(Owned array) {
        data_ = array.data();
        size_ = int64_t(array.size());
        dtype_ = array.dtype();
        owned_ = std::move(array);
    }

  private:
    T* data_ = nullptr;
    int64_t size_ = 0;
    nanobind::dlpack::dtype dtype_{};
    Owned owned_;
};

}  // namespace lorasmith

namespace nanobind::detail {

template <class T>
struct type_caster<lorasmith::Flat<T>> {
    NB_TYPE_CASTER(lorasmith::Flat<T>, const_name("torch.Tensor"))

    bool from_python(handle source, uint32_t flags, cleanup_list* cleanup) noexcept {
        dlpack::dltensor array;
        if (lorasmith::torch_tensors.read(source.ptr(), &array)) return value.take(array);
        make_caster<typename Value::Owned> owned;
        if (!owned.from_python(source, flags, cleanup)) return false;
        value.keep(std::move(owned.value));
        return value.size() == 0 || value.data() != nullptr;
    }
};

}  // namespace nanobind::detail
