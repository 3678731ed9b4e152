// Package migrate is the place of the saved state's format, snapshot, restore
// and live migration. The states themselves belong to the parts that they
// describe (vcpu.State, devices.SerialState and so on).
package migrate
