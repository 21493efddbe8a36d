include("${CMAKE_CURRENT_LIST_DIR}/ptpTargets.cmake")
