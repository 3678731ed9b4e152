package micro

// Registers of PCI configuration space (PCI 3.0 §6.1) and the capabilities of
// virtio (§4.1.4).
const (
	pciID           = 0x00
	pciCommand      = 0x04
	pciBAR0         = 0x10
	pciBAREnd       = 0x28
	pciSubsystem    = 0x2c
	pciCapabilities = 0x34

	// Memory decoding and bus master on, INTx off.
	pciCommandOn = 1<<1 | 1<<2 | 1<<10

	capabilityVendor = 9
	// maxCapabilities is how many fit into 192 bytes, so that a list with a
	// loop in it ends.
	maxCapabilities = 48

	virtioVendor = 0x1af4
	// virtioIDBase is the device ID of type 0 (§4.1.2). Transitional devices
	// have lower ones, and their type as the subsystem ID.
	virtioIDBase = 0x1040
)

// The structures that capabilities point to (§4.1.4).
const (
	regionCommon = 1
	regionNotify = 2
	regionISR    = 3
	regionDevice = 4
	regionCount  = 5
)

const (
	configAddressPort = 0xcf8
	configDataPort    = 0xcfc
	// ecamStart is where godwit and QEMU's microvm have bus 0 in memory
	// (PCIe 5.0 §7.2.2). The latter has no configuration ports.
	ecamStart = 0xe000_0000
	slotShift = 15 // of the slot number in an ECAM address
	slots     = 32
	// barStart is where BARs go that have no address that the program can
	// reach: inside the 32-bit PCI window of godwit, q35 and microvm, and
	// far from where firmware begins to put others.
	barStart = 0xd800_0000
)

// pciPart is the part of a driver that knows where the device is. In the code, RSI
// is the function, as its offset in ECAM, and RCX a register.
type pciPart struct {
	configRead, configWrite Label

	ecam    Mem // address of ECAM, or 0 for the ports
	nextBAR Mem
	// regions are the addresses of the structures, 0 for those absent.
	regions          [regionCount]Mem
	notifyMultiplier Mem
}

// preparePCI chooses the way into configuration space.
func (d *driver) preparePCI() {
	d.configRead = d.routine(d.emitConfigRead)
	d.configWrite = d.routine(d.emitConfigWrite)
	d.ecam, d.nextBAR, d.notifyMultiplier = d.variable(), d.variable(), d.variable()
	for i := range d.regions {
		d.regions[i] = d.variable()
	}
	d.MovImm(RAX, barStart)
	d.Store(Quad, d.nextBAR, RAX)

	// Without configuration ports, the ID of the host bridge reads as ones.
	ports := d.NewLabel()
	d.MovImm(RSI, 0)
	d.readConfig(pciID)
	d.MovImm(RDX, 0xffff_ffff)
	d.Op(Cmp, RAX, RDX)
	d.Jcc(NotEqual, ports)
	d.MovImm(RAX, ecamStart)
	d.Store(Quad, d.ecam, RAX)
	d.Bind(ports)
}

// emitConfigRead is the subroutine that reads the dword at register RCX of
// function RSI into RAX. It changes RDX.
func (d *driver) emitConfigRead() {
	ports := d.NewLabel()
	d.ecamAddress(ports)
	d.Load(Long, RAX, Mem{Base: RDX})
	d.Ret()
	d.Bind(ports)
	d.selectRegister()
	d.In(Long)
}

// emitConfigWrite is the subroutine that writes RBX to register RCX of function
// RSI. It changes RAX and RDX.
func (d *driver) emitConfigWrite() {
	ports := d.NewLabel()
	d.ecamAddress(ports)
	d.Store(Long, Mem{Base: RDX}, RBX)
	d.Ret()
	d.Bind(ports)
	d.selectRegister()
	d.Mov(RAX, RBX)
	d.Out(Long)
}

// ecamAddress sets RDX to the address of the register, or jumps.
func (d *driver) ecamAddress(none Label) {
	d.Load(Quad, RDX, d.ecam)
	d.Test(RDX, RDX)
	d.Jcc(Equal, none)
	d.Op(Add, RDX, RSI)
	d.Op(Add, RDX, RCX)
}

// selectRegister writes CONFIG_ADDRESS (PCI 3.0 §3.2.2.3.2) and sets RDX to the
// port of CONFIG_DATA.
func (d *driver) selectRegister() {
	d.Mov(RAX, RSI)
	d.Shr(RAX, 4)
	d.Op(Or, RAX, RCX)
	d.MovImm(RDX, 1<<31)
	d.Op(Or, RAX, RDX)
	d.MovImm(RDX, configAddressPort)
	d.Out(Long)
	d.MovImm(RDX, configDataPort)
}

// readConfig reads a register into RAX. It changes RCX and RDX.
func (d *driver) readConfig(reg uint64) {
	d.MovImm(RCX, reg)
	d.Call(d.configRead)
}

// writeConfig writes RBX to a register. It changes RAX, RCX and RDX.
func (d *driver) writeConfig(reg uint64) {
	d.MovImm(RCX, reg)
	d.Call(d.configWrite)
}

// eachVirtio runs found for each virtio function in slot order, with its type
// in RAX and the function in RSI, which found keeps. It changes RAX to RDX.
func (d *driver) eachVirtio(found func()) {
	next, modern := d.NewLabel(), d.NewLabel()
	d.MovImm(RSI, 0)
	slot := d.Here()
	d.readConfig(pciID)
	d.Mov(RBX, RAX)
	d.OpImm(And, RBX, 0xffff)
	d.OpImm(Cmp, RBX, virtioVendor)
	d.Jcc(NotEqual, next)
	d.Shr(RAX, 16)
	d.OpImm(Cmp, RAX, virtioIDBase)
	d.Jcc(AboveEqual, modern)
	d.readConfig(pciSubsystem)
	d.Shr(RAX, 16)
	d.OpImm(Add, RAX, virtioIDBase)
	d.Bind(modern)
	d.OpImm(Sub, RAX, virtioIDBase)
	found()
	d.Bind(next)
	d.OpImm(Add, RSI, 1<<slotShift)
	d.OpImm(Cmp, RSI, slots<<slotShift)
	d.Jcc(Below, slot)
}

// findDevice sets RSI to the wanted function.
func (d *driver) findDevice(t deviceType) {
	found := d.NewLabel()
	d.MovImm(RDI, uint64(d.Nth))
	d.eachVirtio(func() {
		other := d.NewLabel()
		d.OpImm(Cmp, RAX, int32(t))
		d.Jcc(NotEqual, other)
		d.Test(RDI, RDI)
		d.Jcc(Equal, found)
		d.Dec(RDI)
		d.Bind(other)
	})
	d.MovImm(RAX, uint64(StatusNoDevice))
	d.Jmp(d.failed)
	d.Bind(found)
}

// assignBARs gives an address to each memory BAR of function RSI that has none
// (no firmware ran) or one above 4 GiB (the page tables may not reach there).
// Memory decoding is off meanwhile.
func (d *driver) assignBARs() {
	const (
		low   = R9  // of the BAR
		wide  = R10 // 0 for a 32-bit BAR
		size  = R11
		place = R12
	)
	d.MovImm(RBX, 0)
	d.writeConfig(pciCommand)
	d.MovImm(RCX, pciBAR0)
	bar := d.Here()
	assign, advance, narrow := d.NewLabel(), d.NewLabel(), d.NewLabel()
	d.Call(d.configRead)
	d.Mov(low, RAX)
	d.MovImm(wide, 0)
	d.TestImm(low, 1) // an I/O BAR
	d.Jcc(NotEqual, advance)
	d.Mov(wide, low)
	d.OpImm(And, wide, 4)
	d.Jcc(Equal, narrow)
	d.OpImm(Add, RCX, 4)
	d.Call(d.configRead)
	d.OpImm(Sub, RCX, 4)
	d.Test(RAX, RAX)
	d.Jcc(NotEqual, assign)
	d.Bind(narrow)
	d.OpImm(And, low, -16)
	d.Jcc(NotEqual, advance)

	d.Bind(assign)
	d.MovImm(RBX, 0xffff_ffff)
	d.Call(d.configWrite)
	d.Call(d.configRead)
	d.OpImm(And, RAX, -16)
	d.Jcc(Equal, advance) // there is no BAR
	d.MovImm(size, 1<<32)
	d.Op(Sub, size, RAX)
	d.Load(Quad, place, d.nextBAR)
	d.Op(Add, place, size)
	d.Dec(place)
	d.Op(And, place, RAX) // a multiple of size, below 4 GiB
	d.Mov(RBX, place)
	d.Call(d.configWrite)
	d.Op(Add, place, size)
	d.Store(Quad, d.nextBAR, place)
	d.Test(wide, wide)
	d.Jcc(Equal, advance)
	d.OpImm(Add, RCX, 4)
	d.MovImm(RBX, 0)
	d.Call(d.configWrite)
	d.OpImm(Sub, RCX, 4)

	d.Bind(advance)
	d.Op(Add, RCX, wide)
	d.OpImm(Add, RCX, 4)
	d.OpImm(Cmp, RCX, pciBAREnd)
	d.Jcc(Below, bar)
}

// eachCapability runs found for each capability of function RSI, with its
// register in RDI, its first dword in R9 and its ID in RAX. Found keeps RSI,
// RDI, R9 and R14. It changes RAX, RCX, RDX, RDI, R9 and R14.
func (d *driver) eachCapability(found func()) {
	next, end := d.NewLabel(), d.NewLabel()
	d.MovImm(R14, maxCapabilities)
	d.readConfig(pciCapabilities)
	d.Mov(RDI, RAX)
	loop := d.Here()
	d.OpImm(And, RDI, 0xfc)
	d.Jcc(Equal, end)
	d.Mov(RCX, RDI)
	d.Call(d.configRead)
	d.Mov(R9, RAX)
	d.OpImm(And, RAX, 0xff)
	found()
	d.Bind(next)
	d.Mov(RDI, R9)
	d.Shr(RDI, 8)
	d.Dec(R14)
	d.Jcc(NotEqual, loop)
	d.Bind(end)
}

// findRegions reads the capabilities of function RSI. Of several structures of
// a kind the first counts.
func (d *driver) findRegions() {
	const (
		kind = R10
		addr = R11
		slot = R12 // where the address goes
	)
	d.eachCapability(func() {
		skip := d.NewLabel()
		d.OpImm(Cmp, RAX, capabilityVendor)
		d.Jcc(NotEqual, skip)
		d.Mov(kind, R9)
		d.Shr(kind, 24)
		d.Jcc(Equal, skip)
		d.OpImm(Cmp, kind, regionCount)
		d.Jcc(AboveEqual, skip)
		d.Mov(slot, kind)
		d.Shl(slot, 3)
		d.Lea(RAX, d.regions[0])
		d.Op(Add, slot, RAX)
		d.Load(Quad, RAX, Mem{Base: slot})
		d.Test(RAX, RAX)
		d.Jcc(NotEqual, skip)

		d.Lea(RCX, Mem{RDI, 4}) // bar
		d.Call(d.configRead)
		d.OpImm(And, RAX, 0xff)
		d.barAddress(addr, skip)
		d.Lea(RCX, Mem{RDI, 8}) // offset
		d.Call(d.configRead)
		d.Op(Add, addr, RAX)
		d.Store(Quad, Mem{Base: slot}, addr)

		d.OpImm(Cmp, kind, regionNotify)
		d.Jcc(NotEqual, skip)
		d.Lea(RCX, Mem{RDI, 16}) // notify_off_multiplier
		d.Call(d.configRead)
		d.Store(Quad, d.notifyMultiplier, RAX)
		d.Bind(skip)
	})
}

// barAddress sets addr to the address of BAR number RAX, or jumps if there is no
// such BAR. It changes RAX, RCX and RDX.
func (d *driver) barAddress(addr Reg, none Label) {
	d.OpImm(Cmp, RAX, (pciBAREnd-pciBAR0)/4)
	d.Jcc(AboveEqual, none)
	d.Shl(RAX, 2)
	d.Lea(RCX, Mem{RAX, pciBAR0})
	d.Call(d.configRead)
	d.Mov(addr, RAX)
	d.OpImm(And, addr, -16)
}

// needRegions ends the program if the device lacks what every device has.
func (d *driver) needRegions() {
	for _, kind := range []int{regionCommon, regionNotify} {
		d.Load(Quad, RAX, d.regions[kind])
		d.Test(RAX, RAX)
		d.failUnless(NotEqual, StatusNoRegions)
	}
}

// enableFunction lets function RSI decode memory and do DMA.
func (d *driver) enableFunction() {
	d.MovImm(RBX, pciCommandOn)
	d.writeConfig(pciCommand)
}
