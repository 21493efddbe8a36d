# TensorRT::TensorRT: NvInfer.h, libnvinfer or libtensorrt_rtx, and the CUDA runtime. TensorRT_ROOT is searched first.
if(TARGET TensorRT::TensorRT)
  set(TensorRT_FOUND TRUE)
  return()
endif()
find_path(TensorRT_INCLUDE_DIR NvInfer.h PATH_SUFFIXES include ${CMAKE_LIBRARY_ARCHITECTURE})
find_library(TensorRT_LIBRARY NAMES nvinfer tensorrt_rtx NAMES_PER_DIR PATH_SUFFIXES lib lib64)
# not find_package(CUDAToolkit), which asks for nvcc in some releases of CMake: a board may have the runtime alone
file(GLOB TensorRT_CUDA_HINTS /usr/local/cuda /usr/local/cuda/targets/* "$ENV{CUDA_HOME}" "${CUDAToolkit_ROOT}")
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${TensorRT_CUDA_HINTS} PATH_SUFFIXES include)
find_library(TensorRT_CUDART_LIBRARY cudart HINTS ${TensorRT_CUDA_HINTS} PATH_SUFFIXES lib64 lib)
include(FindPackageHandleStandardArgs)
set(TensorRT_FIND_QUIETLY TRUE)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TensorRT_LIBRARY TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR TensorRT_CUDART_LIBRARY)
if(TensorRT_FOUND AND NOT TARGET TensorRT::TensorRT)
  if(TensorRT_LIBRARY MATCHES "tensorrt_rtx")
    set(TensorRT_NAMES "tensorrt-rtx")
  else()
    set(TensorRT_NAMES "tensorrt")
  endif()
  add_library(TensorRT::TensorRT INTERFACE IMPORTED)
  set_target_properties(TensorRT::TensorRT PROPERTIES
    INTERFACE_LINK_LIBRARIES "${TensorRT_LIBRARY};${TensorRT_CUDART_LIBRARY}"
    INTERFACE_COMPILE_DEFINITIONS "PTP_TENSORRT_NAME=\"${TensorRT_NAMES}\""
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}"
    INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}")
endif()
