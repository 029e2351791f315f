-- What the segments of an upload have to cover: the size of its data once decompressed. Of a compressed file it is null
-- until a load has read it to its end, which is when it completes.

ALTER TABLE stream_api.uploads ADD COLUMN decoded_bytes bigint CHECK (decoded_bytes >= 0);
UPDATE stream_api.uploads SET decoded_bytes = size_bytes;
