# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, binding=False
"""The inner loops once more, in C: ``protocol/core.py``, ``messages/core.py``, ``waiter.py`` and ``framing/room.py``.

Those say what all this does, and why; here is only what differs. The same tests hold for both. Besides, a connection on
a transport of ours is read and written here without the socket object: recv() and send() on a socket that does not
block return at once, so the GIL is kept for what takes a microsecond, and given up where much is copied.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy, strerror

from asyncio import CancelledError

from aiohvsock.exceptions import ConnectionClosedOK, FrameTooLarge, LocalProtocolError

cdef extern from *:
    """
    #ifdef _WIN32
    /* The loop's transport carries the bytes there. */
    #define HV_POSIX 0
    typedef Py_ssize_t hv_size;
    static hv_size hv_recv(int fd, void *to, size_t size) { return -1; }
    static hv_size hv_send(int fd, const void *data, size_t size) { return -1; }
    static hv_size hv_send2(int fd, void *head, size_t head_size, void *body, size_t body_size) { return -1; }
    #else
    #include <sys/socket.h>
    #include <sys/uio.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    #define HV_POSIX 1
    typedef ssize_t hv_size;
    static hv_size hv_recv(int fd, void *to, size_t size) { return recv(fd, to, size, MSG_DONTWAIT); }
    static hv_size hv_send(int fd, const void *data, size_t size)
    {
        return send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    static hv_size hv_send2(int fd, void *head, size_t head_size, void *body, size_t body_size)
    {
        struct iovec pieces[2] = {{head, head_size}, {body, body_size}};
        struct msghdr message = {0};
        message.msg_iov = pieces;
        message.msg_iovlen = 2;
        return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    #endif
    static inline unsigned long long hv_load(const unsigned char *p)
    {
        return (unsigned long long)p[0] << 56 | (unsigned long long)p[1] << 48 | (unsigned long long)p[2] << 40
            | (unsigned long long)p[3] << 32 | (unsigned long long)p[4] << 24 | (unsigned long long)p[5] << 16
            | (unsigned long long)p[6] << 8 | (unsigned long long)p[7];
    }
    static inline void hv_store(unsigned char *p, unsigned long long value)
    {
        for (int at = 7; at >= 0; at--, value >>= 8)
            p[at] = (unsigned char)value;
    }
    """
    const bint HV_POSIX
    ctypedef Py_ssize_t hv_size
    hv_size hv_recv(int fd, void *to, size_t size) nogil
    hv_size hv_send(int fd, const void *data, size_t size) nogil
    hv_size hv_send2(int fd, void *head, size_t head_size, void *body, size_t body_size) nogil
    unsigned long long hv_load(const unsigned char *p) nogil
    void hv_store(unsigned char *p, unsigned long long value) nogil

cdef enum:
    HEADER = 8
    SMALL = 4096  # so much is copied behind its header, rather than described to the kernel in two pieces
    UNLOCK = 64 * 1024  # from here on the GIL is given up while the kernel copies
    GATHER = 64 * 1024
    SEND_LIMIT = 1024 * 1024
    QUEUE_HIGH = 256 * 1024
    MESSAGE_OVERHEAD = 40

cdef unsigned long long LENGTH = 0xFFFFFFFF

# The fuzzer makes these smaller.
cdef Py_ssize_t large = 32 * 1024
cdef Py_ssize_t large_start = 16 * 1024


def set_large(Py_ssize_t size, Py_ssize_t start):
    """Set from what size on a message is received in place, and how much of it must have come: for tests."""
    global large, large_start
    large, large_start = size, start


cdef class Room:
    """Unlike the one in Python it gives its bytes away without a copy: it sees whether a view of them is left."""

    cdef bytes _bytes
    cdef Py_ssize_t _size
    cdef Py_ssize_t _views

    def __init__(self, Py_ssize_t size):
        self._bytes = PyBytes_FromStringAndSize(NULL, size)
        self._size = size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self._bytes is None:
            raise BufferError("its bytes were taken")
        PyBuffer_FillInfo(view, self, PyBytes_AS_STRING(self._bytes), self._size, False, flags)
        self._views += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._views -= 1

    def getbuffer(self):
        return memoryview(self)

    def take(self, view):
        cdef bytes payload = self._bytes
        try:
            view.release()
        except BufferError:
            pass
        if self._views:
            # Through one that a loop still holds it could be changed.
            return PyBytes_FromStringAndSize(PyBytes_AS_STRING(payload), self._size)
        self._bytes = None
        return payload


cdef class Waiter:
    cdef object _loop
    cdef object _callback
    cdef object _context
    cdef object _cancelled
    cdef bint _given
    cdef public bint _asyncio_future_blocking

    def __init__(self, loop):
        self._loop = loop

    cpdef run_on(self):
        callback = self._callback
        if callback is not None:
            self._callback = None
            self._context.run(callback, self)

    def run_on_soon(self):
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self._context)

    def __await__(self):
        self._asyncio_future_blocking = True
        self._given = False
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self._given:
            raise StopIteration
        self._given = True
        return self

    def add_done_callback(self, callback, *, context=None):
        self._callback = callback
        self._context = context

    def cancel(self, msg=None):
        if self._callback is None:
            return False
        self._cancelled = CancelledError() if msg is None else CancelledError(msg)
        self.run_on_soon()
        return True

    def result(self):
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            raise cancelled

    def get_loop(self):
        return self._loop


cdef class NativeCore:
    cdef public object _partial
    cdef public object _large
    cdef public object buffer
    cdef public object peer
    cdef public Py_ssize_t _need
    cdef public Py_ssize_t _skip
    cdef public long long _limit
    cdef public long long _peer_max
    cdef public long long _longest_joined
    cdef public long long bytes_received
    cdef public bint attention
    cdef public bint close_received
    cdef public bint finished

    def __init__(self, max_size):
        self._partial = bytearray()
        self._need = 1
        self._limit = max_size
        self._peer_max = self._longest_joined = -1
        self.attention = True

    # -- sending -------------------------------------------------------------------------------------------

    cpdef frame(self, message):
        cdef Py_ssize_t size
        if PyBytes_CheckExact(message):
            size = PyBytes_GET_SIZE(message)
            if size <= self._longest_joined:
                return joined(PyBytes_AS_STRING(message), size)
        view = memoryview(message)
        size = view.nbytes
        if self._peer_max < 0:
            self._refuse()
        if size > self._peer_max:
            raise FrameTooLarge(size, self._peer_max)
        if size <= self._longest_joined or not view.c_contiguous:
            piece = view.tobytes()
            return joined(PyBytes_AS_STRING(piece), size)
        return header(size), view.cast("B")

    def add_frames(self, list frames, messages, Py_ssize_t size):
        for message in messages:
            frame = self.frame(message)
            frames.append(frame)
            size -= len(frame) if isinstance(frame, bytes) else size
            if size <= 0:
                return False
        return True

    # -- receiving -----------------------------------------------------------------------------------------

    def receive(self, bytes data):
        cdef list messages = []
        self.bytes_received += PyBytes_GET_SIZE(data)
        if self._partial is not None:
            data = self._resume(data, messages)
        self._cut_all(data, messages)
        return messages

    cdef int _cut_all(self, bytes data, list messages) except -1:
        cdef const unsigned char *start = <const unsigned char *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t end = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t position = 0
        cdef unsigned long long head
        while True:
            position += self._cut(start + position, end - position, messages)
            if end - position < HEADER:
                break
            head = hv_load(start + position)
            if self._limit >= 0 and head <= <unsigned long long>self._limit:
                break
            position = self._other_frame(head, data, position + HEADER)
            if not position:
                return 0
        if position < end:
            self._keep(data, position)
        return 0

    cdef Py_ssize_t _cut(self, const unsigned char *data, Py_ssize_t size, list messages) except -1:
        """Cut off messages that are whole; returns where something else begins."""
        cdef Py_ssize_t position = 0
        cdef unsigned long long limit, head
        if self._limit < 0:
            return 0
        limit = <unsigned long long>self._limit
        while size - position >= HEADER:
            head = hv_load(data + position)
            if head > limit or head > <unsigned long long>(size - position - HEADER):
                break
            messages.append(PyBytes_FromStringAndSize(<const char *>data + position + HEADER, <Py_ssize_t>head))
            position += HEADER + <Py_ssize_t>head
        return position

    def received(self, Py_ssize_t size):
        self.bytes_received += size
        if size < len(self.buffer):
            self.buffer = self.buffer[size:]
            return []
        message = self._large.take(self.buffer)
        self.buffer = self._large = self._partial = None
        return [message] if self._limit >= 0 else []

    cdef int _keep(self, bytes data, Py_ssize_t position) except -1:
        cdef Py_ssize_t have = PyBytes_GET_SIZE(data) - position
        cdef Py_ssize_t size
        self._need = HEADER
        if have >= HEADER:
            size = <Py_ssize_t>(hv_load(<const unsigned char *>PyBytes_AS_STRING(data) + position) & LENGTH)
            have -= HEADER
            if size >= large and have >= large_start:
                self._large = Room(size)
                view = self._large.getbuffer()
                view[:have] = memoryview(data)[position + HEADER :]
                self.buffer = view[have:]
                self._partial = bytearray()
                self.attention = True
                return 0
            self._need += size if size < large else large_start
        self._partial = bytearray(memoryview(data)[position:])
        return 0

    # -- from a buffer in C --------------------------------------------------------------------------------

    cdef Py_ssize_t _begin(self, char *to, Py_ssize_t room) except -1:
        """Copy what has come of a frame to where the rest is to be received; returns its size."""
        cdef Py_ssize_t size
        if self._partial is None or self.buffer is not None or self._skip or self.peer is None:
            return 0
        if self.finished or self.close_received:
            return 0
        size = PyByteArray_GET_SIZE(self._partial)
        if size > room // 2:
            return 0
        memcpy(to, PyByteArray_AS_STRING(self._partial), size)
        return size

    cdef list _receive_from(self, char *data, Py_ssize_t begun, Py_ssize_t size):
        """Take the next bytes of the stream, behind those of :meth:`_begin`."""
        cdef list messages = []
        cdef Py_ssize_t position = 0
        self.bytes_received += size
        if begun:
            if begun + size < self._need:
                self._partial += PyBytes_FromStringAndSize(data + begun, size)
                return messages
            self._partial = None
        if self._partial is None:
            size += begun
            position = self._cut(<const unsigned char *>data, size, messages)
            if position == size:
                return messages
        rest = PyBytes_FromStringAndSize(data + position, size - position)
        if self._partial is not None:
            rest = self._resume(rest, messages)
        self._cut_all(rest, messages)
        return messages


cdef bytes joined(const char *payload, Py_ssize_t size):
    frame = PyBytes_FromStringAndSize(NULL, HEADER + size)
    cdef char *to = PyBytes_AS_STRING(frame)
    hv_store(<unsigned char *>to, size)
    memcpy(to + HEADER, payload, size)
    return frame


cdef bytes header(Py_ssize_t size):
    frame = PyBytes_FromStringAndSize(NULL, HEADER)
    hv_store(<unsigned char *>PyBytes_AS_STRING(frame), size)
    return frame


cdef class MessageCore:
    cdef public object _loop
    cdef public object _wire
    cdef public object _on_message
    cdef public object _transport
    cdef public object _end
    cdef public list _held
    cdef public list _ready
    cdef public list _later
    cdef public object _listening_since
    cdef public Waiter _waiter
    cdef public long long _counted
    cdef public long long _queued
    cdef public long long _ready_bytes
    cdef public long long _received
    cdef public long long _sent
    cdef public long long _sent_bytes
    cdef public bint _direct
    cdef public bint _reading
    cdef public bint _flush_scheduled
    cdef public bint _waiting
    cdef public bint _write_paused

    cdef NativeCore _native  # None with a codec
    cdef int _fd  # -1: bytes go by way of the transport's methods

    # What is gathered.
    cdef char *_frames
    cdef Py_ssize_t _frames_size
    cdef Py_ssize_t _frames_room
    cdef Py_ssize_t _frames_count

    def __init__(self, loop, wire, on_message):
        self._loop = loop
        self._wire = wire
        self._native = wire if isinstance(wire, NativeCore) else None
        self._on_message = on_message
        self._direct = True
        self._reading = True
        self._held = []
        self._ready = []
        self._fd = -1

    def __dealloc__(self):
        PyMem_Free(self._frames)

    @property
    def transport(self):
        """The transport below. It is the connection's: look, but do not write."""
        return self._transport

    def _attach(self, transport):
        self._transport = transport
        if HV_POSIX and getattr(transport, "_is_bare", False):
            self._fd = transport._fd

    # -- sending -------------------------------------------------------------------------------------------

    def send_nowait(self, message):
        """Send one message without ever waiting, as a callback must.

        The first message after something was received goes straight out; those that follow in the same turn of
        the loop leave together.

        Raises:
            LocalProtocolError: 1 MiB is waiting already for a peer that is slow; the message was not sent.
            FrameTooLarge: as :meth:`send`.
            ConnectionClosed: as :meth:`send`.
        """
        cdef Py_ssize_t size
        if PyBytes_CheckExact(message) and self._native is not None:
            size = PyBytes_GET_SIZE(message)
            if size <= self._native._longest_joined:
                self._send_joined(PyBytes_AS_STRING(message), size, True)
                return
        try:
            frame = self._wire.frame(message)
        except LocalProtocolError:
            self._raise_end()
            raise
        if type(frame) is bytes:
            self._send_joined(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), False)
        else:
            self._check_room()
            self._flush()
            self._sent += 1
            self._write_pieces(frame)

    cdef int _send_joined(self, const char *payload, Py_ssize_t size, bint bare) except -1:
        """Send what is small; ``bare`` is a payload that wants a header."""
        if not self._frames_size:
            if self._direct:
                self._direct = False
                self._sent += 1
                self._write(payload, size, bare)
                return 0
            self._check_room()
            if not self._flush_scheduled:
                self._flush_scheduled = True
                self._loop.call_soon(self._flush_soon)
        self._gather(payload, size, bare)
        if self._frames_size >= GATHER:
            self._flush()
        return 0

    cdef int _gather(self, const char *payload, Py_ssize_t size, bint bare) except -1:
        cdef Py_ssize_t needed = self._frames_size + size + HEADER
        cdef Py_ssize_t room
        cdef char *frames
        if needed > self._frames_room:
            room = max(needed, 4 * self._frames_room, 1024)
            frames = <char *>PyMem_Realloc(self._frames, room)
            if frames is NULL:
                raise MemoryError
            self._frames, self._frames_room = frames, room
        if bare:
            hv_store(<unsigned char *>self._frames + self._frames_size, size)
            self._frames_size += HEADER
        memcpy(self._frames + self._frames_size, payload, size)
        self._frames_size += size
        self._frames_count += 1
        return 0

    cdef int _check_room(self) except -1:
        if self._write_paused:
            waiting = self._transport.get_write_buffer_size()
            if waiting >= SEND_LIMIT:
                raise LocalProtocolError(
                    f"{self!r}: {waiting} bytes wait to be sent to a peer that reads slowly; await send() instead"
                )
        return 0

    def _flush_soon(self):
        self._flush_scheduled = False
        self._flush()
        self._direct = not self._write_paused

    cpdef _flush(self):
        cdef char *frames = self._frames
        cdef Py_ssize_t size = self._frames_size
        if size:
            self._sent += self._frames_count
            # Writing can call back, and that can send.
            self._frames = NULL
            self._frames_size = self._frames_room = self._frames_count = 0
            try:
                self._write(frames, size, False)
            finally:
                PyMem_Free(frames)

    cdef int _write(self, const char *payload, Py_ssize_t size, bint bare) except -1:
        """Write bytes, with a header or without."""
        cdef unsigned char head[HEADER]
        cdef char small[HEADER + SMALL]
        cdef Py_ssize_t before = HEADER if bare else 0
        cdef hv_size sent
        cdef int number
        self._sent_bytes += before + size
        if self._fd < 0 or not self._transport._direct:
            self._transport.write(
                joined(payload, size) if bare else PyBytes_FromStringAndSize(payload, size)
            )
            return 0
        if not bare:
            if size < UNLOCK:
                sent = hv_send(self._fd, payload, size)
            else:
                with nogil:
                    sent = hv_send(self._fd, payload, size)
        elif size <= SMALL:
            hv_store(<unsigned char *>small, size)
            memcpy(small + HEADER, payload, size)
            sent = hv_send(self._fd, small, HEADER + size)
        else:
            hv_store(head, size)
            sent = hv_send2(self._fd, head, HEADER, <void *>payload, size)
        if sent == before + size:
            return 0
        if sent < 0:
            number = errno
            if number != EAGAIN and number != EINTR:
                self._transport._write_failed(system_error(number))
                return 0
            sent = 0
        self._transport._write_rest(
            joined(payload, size) if bare else PyBytes_FromStringAndSize(payload, size), sent
        )
        return 0

    cdef int _write_pieces(self, pieces) except -1:
        # Of what the user gave, len() may count items.
        self._sent_bytes += sum([memoryview(piece).nbytes for piece in pieces])
        self._transport.writelines(pieces)
        return 0

    def _send_some(self, messages):
        """Send as many as make a large write; returns whether there are no more."""
        cdef NativeCore native = self._native
        cdef Py_ssize_t size
        self._flush()
        try:
            for message in messages:
                if PyBytes_CheckExact(message) and native is not None:
                    size = PyBytes_GET_SIZE(message)
                    if size <= native._longest_joined:
                        self._gather(PyBytes_AS_STRING(message), size, True)
                        if self._frames_size >= GATHER:
                            return False
                        continue
                frame = self._wire.frame(message)
                if type(frame) is not bytes:
                    self._flush()
                    self._sent += 1
                    self._write_pieces(frame)
                    return False
                self._gather(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), False)
                if self._frames_size >= GATHER:
                    return False
            return True
        except LocalProtocolError:
            self._raise_end()
            raise
        finally:
            self._flush()

    async def send(self, message):
        """Send one message; wait first while the peer is slow.

        If it is cancelled the message was not sent. Success says that it is on its way, not that the peer has it.

        Raises:
            FrameTooLarge: the peer does not take a message that long; the connection goes on.
            ConnectionClosedOK: the connection was closed.
            ConnectionLost: the connection is gone.
            TypeError: it is no message.
        """
        if self._write_paused:
            await self._send_in_turn(message)
        else:
            self.send_nowait(message)

    # -- receiving -----------------------------------------------------------------------------------------

    async def recv(self):
        """Return the next message.

        If it is cancelled nothing is lost: the next call returns the message.

        Raises:
            ConnectionClosedOK: the peer has closed the connection, or this side has.
            ConnectionLost: the connection ended otherwise; why is its ``__cause__``.
            LocalProtocolError: another task is receiving, or ``on_message=`` is.
        """
        while not self._ready:
            waiter = self._next_batch()
            if waiter is not None:
                try:
                    await waiter
                finally:
                    self._waiting = False
        message = self._ready.pop()
        if not self._reading:
            self._check_queue()
        return message

    async def __anext__(self):
        while not self._ready:
            try:
                waiter = self._next_batch()
            except ConnectionClosedOK:
                raise StopAsyncIteration from None
            if waiter is not None:
                try:
                    await waiter
                finally:
                    self._waiting = False
        message = self._ready.pop()
        if not self._reading:
            self._check_queue()
        return message

    def data_received(self, data):
        self._take(self._wire.receive(data))

    cdef int _received_one(self, bytes message) except -1:
        """Do what :meth:`_take` does, for one message to a callback that may be called at once."""
        self._direct = not (self._flush_scheduled or self._write_paused)
        self._received += 1
        try:
            self._on_message(self, message)
        except Exception as error:
            self._call_failed(error)
        if self._write_paused:
            self._stop_reading()
        if self._native.attention:
            self._attend()
        return 0

    cpdef _take(self, list messages):
        """Do what a read asks for, with which these messages came."""
        self._direct = not (self._flush_scheduled or self._write_paused)
        if messages:
            self._received += len(messages)
            if self._waiting and not self._ready:  # a waiting task that was cancelled can have some already
                messages.reverse()
                self._ready = messages
            elif self._on_message is not None:
                if self._wire.close_received:
                    self._attend()  # so that an answer is refused with the reason
                self._call(messages)
            else:
                self._queue(messages)
        if self._wire.attention if self._native is None else self._native.attention:
            self._attend()
        # Last of all, since the task runs on right here.
        if self._waiting and messages:
            self._waiter.run_on()

    cdef int _queue(self, list messages) except -1:
        cdef long long counted = self._counted
        cdef long long size
        self._counted = self._wire.bytes_received
        size = self._counted - counted + MESSAGE_OVERHEAD * len(messages)
        messages.reverse()
        if self._ready or self._later:
            if self._later is None:
                self._later = []
            self._later.append((messages, size))
        else:
            self._queued -= self._ready_bytes
            self._ready, self._ready_bytes = messages, size
        self._queued += size
        if self._queued > QUEUE_HIGH:
            self._stop_reading()
        return 0

    cdef int _call(self, list messages) except -1:
        if len(messages) == 1 and not (self._held or self._write_paused):
            try:
                self._on_message(self, messages[0])
            except Exception as error:
                self._call_failed(error)
            if self._write_paused:
                self._stop_reading()
        else:
            messages.reverse()
            self._held = messages + self._held
            # What was only read to hear whether the peer lives waits, as what came before it does.
            if self._listening_since is None or self._end is not None:
                self._call_held()
        return 0

    cpdef _call_held(self):
        """Call back with what is held, as long as the peer reads what is answered."""
        cdef list held = self._held
        cdef long long unsent
        end = self._end
        on_message = self._on_message
        # What they send leaves together.
        self._direct = False
        self._flush_scheduled = True
        while held and self._end is end:
            unsent = self._unsent() if self._write_paused else -1
            try:
                on_message(self, held.pop())
            except Exception as error:
                self._call_failed(error)
            if self._write_paused and self._unsent() > unsent and self._end is None:
                self._stop_reading()
                break
        if self._end is not end:
            held.clear()
        self._flush_soon()

    cdef long long _unsent(self) except -1:
        return self._transport.get_write_buffer_size() + self._frames_size


cdef object system_error(int number):
    return OSError(number, strerror(number).decode("utf-8", "replace"))


cdef class Reader:
    """What a loop calls when the socket of a transport of ours is readable.

    Args:
        transport: the transport. What is out of the ordinary is left to its methods.
        fd: its descriptor.
        protocol: its protocol, which takes bytes.
        scratch: where to receive.
    """

    cdef object _transport
    cdef object _scratch
    cdef object _data_received
    cdef MessageCore _connection
    cdef char *_start
    cdef Py_ssize_t _size
    cdef int _fd

    def __init__(self, transport, int fd, protocol, unsigned char[::1] scratch):
        self._transport = transport
        self._fd = fd
        self._scratch = scratch
        self._start = <char *>&scratch[0]
        self._size = scratch.shape[0]
        if isinstance(protocol, MessageCore) and (<MessageCore>protocol)._native is not None:
            self._connection = protocol
        self._data_received = protocol.data_received

    def __call__(self):
        cdef MessageCore connection = self._connection
        cdef NativeCore native
        cdef Py_ssize_t begun = 0
        cdef hv_size size
        cdef unsigned long long head
        if connection is not None:
            native = connection._native
            begun = native._begin(self._start, self._size)
        size = hv_recv(self._fd, self._start + begun, self._size - begun)
        if size <= 0:
            self._not_received(size)
            return
        try:
            if connection is None:
                self._data_received(PyBytes_FromStringAndSize(self._start, size))
                return
            # A read is one message, mostly.
            if native._partial is None and size >= HEADER and connection._on_message is not None:
                head = hv_load(<const unsigned char *>self._start)
                if (
                    head == <unsigned long long>(size - HEADER)
                    and native._limit >= 0
                    and head <= <unsigned long long>native._limit
                    and not (connection._write_paused or connection._held or native.close_received)
                ):
                    native.bytes_received += size
                    connection._received_one(PyBytes_FromStringAndSize(self._start + HEADER, size - HEADER))
                    return
            connection._take(native._receive_from(self._start, begun, size))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._transport._fatal(error, "protocol.data_received() failed")

    cdef int _not_received(self, hv_size size) except -1:
        cdef int number = errno
        if not size:
            self._transport._eof_received()
        elif number == EAGAIN or number == EINTR:
            self._transport._read_would_block()
        else:
            self._transport._read_failed(system_error(number))
        return 0
